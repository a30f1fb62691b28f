//! What keys there are, in as much room as the terminal has.

use super::draw::Screen;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::{Block, Clear, Paragraph};

pub const ENTRIES: [(&str, &str); 20] = [
    ("1", "connections"),
    ("2", "cluster"),
    ("3", "streaming channels"),
    ("4", "streaming clients"),
    ("5", "slow consumers"),
    ("6", "event loops"),
    ("tab", "all servers, or one by one"),
    ("o", "sort connections by a key"),
    ("< >", "sort by the column beside"),
    ("n", "number of connections"),
    ("s", "subscriptions on and off"),
    ("d", "names of addresses"),
    ("b", "numbers in full"),
    ("space", "rates in place of totals"),
    ("/", "only what has a word in it"),
    ("f", "freeze"),
    ("c", "follow routes to others"),
    ("arrows", "scroll, also pgup pgdn home"),
    ("? h", "this help"),
    ("q ctrl-c", "quit"),
];
const KEY_WIDTH: u16 = 10;
const WORDS_WIDTH: u16 = 28;

/// Where the help stands, and how it is laid out.
struct Layout {
    area: Rect,
    /// Beside each other.
    columns: usize,
    lines: usize,
}

impl Layout {
    fn new(whole: Rect) -> Self {
        let column = KEY_WIDTH + WORDS_WIDTH;
        let room = Rect {
            width: whole.width.saturating_sub(2),
            height: whole.height.saturating_sub(2),
            ..whole
        };
        let wanted = ENTRIES.len().div_ceil(usize::from(room.height.max(1)));
        let columns = wanted.clamp(1, usize::from((room.width / column).max(1)));
        let lines = ENTRIES.len().div_ceil(columns);
        let width = whole.width.min(columns as u16 * column + 2);
        let height = whole.height.min(lines as u16 + 2);
        let area = Rect {
            x: whole.x + (whole.width - width) / 2,
            y: whole.y + (whole.height - height) / 2,
            width,
            height,
        };
        Self {
            area,
            columns,
            lines,
        }
    }

    /// Lines that there is no room for.
    fn hidden(&self) -> usize {
        let room = usize::from(self.area.height.saturating_sub(2));
        self.lines.saturating_sub(room)
    }
}

/// How far the help can be scrolled in a terminal of this size.
pub fn scroll_max(whole: Rect) -> usize {
    Layout::new(whole).hidden()
}

pub fn draw(f: &mut Frame<'_>, screen: &Screen) {
    let layout = Layout::new(f.area());
    let entry = |(key, words): &(&str, &str)| {
        let (left, right) = (KEY_WIDTH.into(), WORDS_WIDTH.into());
        format!("{key:<left$}{words:<right$}")
    };
    let line = |at: usize| {
        let entries =
            (0..layout.columns).filter_map(|column| ENTRIES.get(at + column * layout.lines));
        Line::raw(entries.map(entry).collect::<String>())
    };
    let hidden = layout.hidden();
    let from = screen.help_scroll.min(hidden);
    let text: Vec<Line<'_>> = (from..layout.lines).map(line).collect();
    let mut block = Block::bordered()
        .title("midge-top")
        .border_style(screen.head());
    if hidden > 0 {
        block = block.title_bottom("up and down scroll");
    }
    f.render_widget(Clear, layout.area);
    f.render_widget(Paragraph::new(text).block(block), layout.area);
}
