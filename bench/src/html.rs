//! The report as one page with plots, for a browser; nothing in it comes from outside.

use crate::report::{Ratio, Report, Row, percentiles, rate, ratio, short};
use crate::scenarios::Group;
use crate::stats::Latency;
use plotters::prelude::*;
use std::fmt::Write;

const SIZE: (u32, u32) = (760, 360);
/// Told apart by colour-blind readers as well.
const COLOURS: [RGBColor; 5] = [
    RGBColor(37, 99, 168),
    RGBColor(213, 94, 0),
    RGBColor(0, 140, 110),
    RGBColor(150, 80, 160),
    RGBColor(110, 110, 110),
];

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1d1f21;background:#fbfbfa}\
h2{margin-top:2.2rem}table{border-collapse:collapse;font-variant-numeric:tabular-nums}\
th,td{padding:.25rem .7rem;text-align:right;border-bottom:1px solid #dfe1e3}th:first-child,td:first-child{text-align:left}\
.missed{color:#b3261e}.dim{color:#6b7075}svg{max-width:100%;height:auto;background:#fff;border:1px solid #dfe1e3;margin:.8rem 0}\
.scroll{overflow-x:auto}";

/// A line of a plot.
struct Series<'a> {
    name: &'a str,
    points: Vec<(f64, f64)>,
}

struct Axes {
    title: String,
    x: &'static str,
    y: &'static str,
}

pub fn page(report: &Report) -> Result<String, String> {
    let mut page = format!(
        "<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>midge-bench</title><style>{STYLE}</style></head><body><h1>midge-bench</h1><p>{}</p>",
        escaped(&report.provenance())
    );
    page += "<p class=\"dim\">Figures are medians; less is better. CPU is what the server used, as the kernel accounts it. \
             The ratio says how many times less the first server needs than this one, by the better half of each server's rounds, and half of the interval it lies in; \
             a question mark where that is too wide to be sure.</p>";
    for (group, section) in report.sections() {
        let _ = write!(page, "<h2>{}</h2>", group.title());
        page += &table(&section);
        page += &latencies(&section);
        for plot in plots(group, &section)? {
            page += &plot;
        }
    }
    page += "</body></html>\n";
    Ok(page)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn table(section: &[&Vec<Row>]) -> String {
    let mut text = String::from("<div class=\"scroll\"><table><tr><th>scenario</th><th>unit</th>");
    for (index, row) in section[0].iter().enumerate() {
        let name = escaped(&row.server);
        let _ = write!(
            text,
            "<th>{name}</th><th>min-max</th><th>per second</th><th>payload B/s</th><th>peak MB</th>"
        );
        if index > 0 {
            text += "<th>ratio</th>";
        }
    }
    text += "<th>rounds</th><th>target</th></tr>";
    for rows in section {
        let about = escaped(&rows[0].about);
        let _ = write!(text, "<tr><td>{about}</td><td>{}</td>", rows[0].unit);
        for (index, row) in rows.iter().enumerate() {
            let figure = row.figure();
            let missed = row.target.is_some_and(|target| figure.median > target);
            let _ = write!(
                text,
                "<td{}>{}</td><td class=\"dim\">{}-{}</td><td>{}</td><td>{}</td><td>{:.1}</td>",
                if missed && index == 0 {
                    " class=\"missed\""
                } else {
                    ""
                },
                short(figure.median),
                short(figure.min),
                short(figure.max),
                rate(row.rate()),
                rate(row.bytes_rate()),
                row.peak_memory as f64 / 1e6
            );
            if index > 0 {
                text += &ratio_cell(ratio(rows, index));
            }
        }
        let target = rows[0]
            .target
            .map_or("-".into(), |target| target.to_string());
        let rounds = rows[0].rounds();
        let _ = write!(
            text,
            "<td class=\"dim\">{rounds}</td><td>{target}</td></tr>"
        );
    }
    text + "</table></div>"
}

/// All percentiles that were measured in a section; nothing where none were.
fn latencies(section: &[&Vec<Row>]) -> String {
    let rows = section.iter().copied().flatten();
    let rows: Vec<&Row> = rows.filter(|row| !row.latencies.is_empty()).collect();
    let Some(first) = rows.first() else {
        return String::new();
    };
    let mut text =
        String::from("<div class=\"scroll\"><table><tr><th>latency, us</th><th>server</th>");
    for (name, _) in percentiles(first) {
        let _ = write!(text, "<th>{name}</th>");
    }
    text += "</tr>";
    for row in rows {
        let (about, server) = (escaped(&row.about), escaped(&row.server));
        let _ = write!(text, "<tr><td>{about}</td><td>{server}</td>");
        for (_, value) in percentiles(row) {
            let _ = write!(text, "<td>{}</td>", value.map_or("-".into(), short));
        }
        text += "</tr>";
    }
    text + "</table></div>"
}

fn ratio_cell(ratio: Option<Ratio>) -> String {
    let Some(ratio) = ratio else {
        return "<td>-</td>".into();
    };
    let uncertainty = ratio.uncertainty().unwrap_or_default();
    format!("<td>{ratio} <span class=\"dim\">{uncertainty}</span></td>")
}

fn plots(group: Group, section: &[&Vec<Row>]) -> Result<Vec<String>, String> {
    let axes = |title: &str, x, y| Axes {
        title: title.into(),
        x,
        y,
    };
    let of = |value: fn(&Row) -> f64| series(section, value);
    Ok(match group {
        Group::Payload => vec![
            lines(
                &axes("CPU of the server", "payload, bytes", "ns per publish"),
                &of(|row| row.figure().median),
            )?,
            lines(
                &axes("Throughput", "payload, bytes", "messages per second"),
                &of(Row::rate),
            )?,
        ],
        Group::FanOut => vec![
            lines(
                &axes("CPU of the server", "subscribers", "ns per publish"),
                &of(|row| row.figure().median),
            )?,
            lines(
                &axes("Deliveries", "subscribers", "messages delivered per second"),
                &of(|row| row.rate() * row.x.unwrap_or(1.0)),
            )?,
        ],
        Group::Latency => section
            .iter()
            .map(|rows| {
                let title = format!("Latency, {}", rows[0].about);
                lines(
                    &axes(&title, "1 / (1 - quantile)", "microseconds"),
                    &curves(rows),
                )
            })
            .collect::<Result<_, _>>()?,
        Group::Streaming => vec![lines(
            &axes(
                "Acks of publishes, file store",
                "1 / (1 - quantile)",
                "microseconds",
            ),
            &section
                .iter()
                .find(|rows| rows[0].scenario == "stan-file")
                .map_or(Vec::new(), |rows| curves(rows)),
        )?],
        _ => Vec::new(),
    })
}

/// A value of every server over the axis of the section.
fn series<'a>(section: &[&'a Vec<Row>], value: fn(&Row) -> f64) -> Vec<Series<'a>> {
    let servers = section[0].iter().enumerate();
    let one = |(index, row): (usize, &'a Row)| Series {
        name: &row.server,
        points: section
            .iter()
            .filter_map(|rows| Some((rows.get(index)?.x?.max(1.0), value(&rows[index]))))
            .collect(),
    };
    servers.map(one).collect()
}

/// The latencies of the run in the middle.
fn curves(rows: &[Row]) -> Vec<Series<'_>> {
    let one = |row: &'_ Row| {
        let mut runs: Vec<&Latency> = row.latencies.iter().collect();
        runs.sort_by(|a, b| a.p99.total_cmp(&b.p99));
        let curve = runs
            .get(runs.len() / 2)
            .map(|latency| latency.curve.clone());
        let spaced = curve.unwrap_or_default().into_iter();
        spaced
            .map(|(quantile, value)| (1.0 / (1.0 - quantile), value))
            .collect()
    };
    rows.iter()
        .map(|row| Series {
            name: &row.server,
            points: one(row),
        })
        .collect()
}

/// Lines over two logarithmic axes; nothing where there are no points.
fn lines(axes: &Axes, series: &[Series<'_>]) -> Result<String, String> {
    let sound = |(x, y): &&(f64, f64)| x.is_finite() && *y > 0.0;
    let points = || {
        series
            .iter()
            .flat_map(|series| series.points.iter().filter(sound))
    };
    if points().count() < 2 {
        return Ok(String::new());
    }
    let span = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::MAX, f64::MIN), |(low, high), value| {
            (low.min(value), high.max(value))
        })
    };
    let (left, right) = span(&mut points().map(|(x, _)| *x));
    let (bottom, top) = span(&mut points().map(|(_, y)| *y));
    let mut svg = String::new();
    draw(
        &mut svg,
        axes,
        series,
        (left, right),
        (bottom * 0.7, top * 1.4),
    )
    .map_err(|error| format!("plot: {error}"))?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    axes: &Axes,
    series: &[Series<'_>],
    (left, right): (f64, f64),
    (bottom, top): (f64, f64),
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(&axes.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(70)
        .build_cartesian_2d(
            (left..right.max(left * 1.01)).log_scale(),
            (bottom..top).log_scale(),
        )?;
    let label = |value: &f64| match *value {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e3 => format!("{}k", v / 1e3),
        v => format!("{v}"),
    };
    chart
        .configure_mesh()
        .x_desc(axes.x)
        .y_desc(axes.y)
        .x_label_formatter(&label)
        .y_label_formatter(&label)
        .light_line_style(RGBColor(238, 238, 238))
        .draw()?;
    for (series, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let points = series
            .points
            .iter()
            .copied()
            .filter(|(x, y)| x.is_finite() && *y > 0.0);
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?
            .label(series.name)
            .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(points.map(|point| Circle::new(point, 3, colour.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Estimate;

    #[test]
    fn a_ratio_tells_how_sure_it_is() {
        let cell = |width| ratio_cell(Some(Ratio(Estimate { value: 4.0, width })));
        let dim = |text: &str| format!("<span class=\"dim\">{text}</span></td>");
        assert_eq!(cell(Some(0.08)), format!("<td>4.0x {}", dim("±4.0 %")));
        assert_eq!(cell(Some(0.4)), format!("<td>4.0x ? {}", dim("±20 %")));
        assert_eq!(ratio_cell(None), "<td>-</td>");
    }

    #[test]
    fn a_page_with_every_section_and_its_plots() {
        let page = page(&crate::report::tests::report()).unwrap();
        for group in Group::ALL {
            assert!(page.contains(group.title()), "{group:?}");
        }
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
        assert!(
            page.matches("<svg").count() >= 7,
            "{}",
            page.matches("<svg").count()
        );
        assert!(page.contains("<th>p50</th><th>p99</th><th>p99.9</th><th>max</th>"));
        assert!(page.contains("class=\"missed\"") || page.contains("4.0x"));
        assert!(page.contains("<td>4.0x ? <span class=\"dim\"></span></td>"));
        let address = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!address.contains("http://") && !address.contains("https://"));
    }
}
