//! Faults no server may have, planted into what routes carry: they show that the checks notice.

/// What is done to the bytes of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    Nothing,
    DropUnsub,
    DropMessage,
    RepeatMessage,
}

pub struct Saboteur {
    what: Sabotage,
    /// Only once the cluster is stable, where nothing excuses a loss.
    pub armed: bool,
}

impl Saboteur {
    pub fn new(what: Sabotage) -> Self {
        Self { what, armed: false }
    }

    /// Does it to every eighth line or message that is in these bytes as a whole.
    pub fn spoil(&self, bytes: &mut Vec<u8>, random: &mut fastrand::Rng) {
        if !self.armed || self.what == Sabotage::Nothing || random.u8(..8) > 0 {
            return;
        }
        let verb: &[u8] = match self.what {
            Sabotage::DropUnsub => b"UNSUB ",
            _ => b"MSG ",
        };
        let Some(range) = find(bytes, verb) else {
            return;
        };
        match self.what {
            Sabotage::RepeatMessage => {
                let copy = bytes[range.clone()].to_vec();
                bytes.splice(range.end..range.end, copy);
            }
            _ => drop(bytes.drain(range)),
        }
    }
}

/// The first whole line with this verb; a message with its payload.
fn find(bytes: &[u8], verb: &[u8]) -> Option<std::ops::Range<usize>> {
    let starts_line = |at: usize| at == 0 || bytes[..at].ends_with(b"\r\n");
    let start = (0..bytes.len()).find(|at| bytes[*at..].starts_with(verb) && starts_line(*at))?;
    let line = bytes[start..].windows(2).position(|pair| pair == b"\r\n")?;
    let mut end = start + line + 2;
    if verb == b"MSG " {
        let size = bytes[start..end - 2].rsplit(|byte| *byte == b' ').next()?;
        end += std::str::from_utf8(size).ok()?.parse::<usize>().ok()? + 2;
    }
    (end <= bytes.len()).then_some(start..end)
}
