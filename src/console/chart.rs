//! Charts of the last hour, drawn here as SVG. Pure.
//!
//! A chart is as wide as its samples: those of a young daemon fill it as those of
//! an old one do. It is stretched to the page, so it holds lines only; its words
//! (title, scale, legend with the last values) are text beside it.

use std::fmt::Write as _;

use jiff::Timestamp;

/// The drawing's own size; the page stretches it.
const WIDTH: f64 = 600.0;
const HEIGHT: f64 = 150.0;

/// Points of a line at most: one for every three pixels.
const POINTS: usize = 180;

/// One line.
#[derive(Debug)]
pub(super) struct Line {
    /// What it is.
    pub(super) name: String,
    /// Which of the style's lines it is.
    pub(super) class: &'static str,
    /// A value for each sample; none where there was nothing.
    pub(super) values: Vec<Option<f64>>,
}

/// A chart as the page has it.
#[derive(Debug)]
pub(super) struct Chart {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    /// The value at the top.
    pub(super) top: String,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) legend: Vec<Entry>,
    /// The paths, safe to be put into a page.
    pub(super) svg: String,
    /// Whether there is anything to see.
    pub(super) is_empty: bool,
}

/// One line's words.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) class: &'static str,
    pub(super) last: String,
}

/// Draws a chart; `top` is the value at its upper edge, or none to fit the lines;
/// `say` puts a value into words.
pub(super) fn draw(
    (id, title): (&'static str, &'static str),
    times: &[Timestamp],
    lines: Vec<Line>,
    top: Option<f64>,
    say: impl Fn(f64) -> String,
) -> Chart {
    let values = || lines.iter().flat_map(|line| line.values.iter().flatten().copied());
    let highest = values().fold(0.0, f64::max);
    let top = top.unwrap_or_else(|| nice(highest));
    let mut svg = String::new();
    for part in [0.25, 0.5, 0.75] {
        let y = HEIGHT * part;
        let _ = write!(svg, "<path class=\"rule\" d=\"M0 {y:.1}H{WIDTH}\"/>");
    }
    for line in &lines {
        let d = path(&line.values, top);
        if !d.is_empty() {
            let _ = write!(svg, "<path class=\"line {}\" d=\"{d}\"/>", line.class);
        }
    }
    let span = times.first().zip(times.last()).map_or(0, |(from, to)| to.duration_since(*from).as_secs());
    // A young daemon's minutes are told apart by their seconds.
    let form = if span < 600 { "%H:%M:%S UTC" } else { "%H:%M UTC" };
    let clock =
        |time: Option<&Timestamp>| time.map(|time| time.strftime(form).to_string()).unwrap_or_default();
    Chart {
        id,
        title,
        top: say(top),
        from: clock(times.first()),
        to: clock(times.last()),
        is_empty: values().next().is_none(),
        legend: lines
            .into_iter()
            .map(|line| Entry {
                last: line.values.iter().rev().find_map(|value| *value).map_or_else(|| "–".into(), &say),
                name: line.name,
                class: line.class,
            })
            .collect(),
        svg,
    }
}

/// A line through what is there; a value alone is a dot.
fn path(values: &[Option<f64>], top: f64) -> String {
    let thinned = thin(values);
    let mut d = String::new();
    let (mut pen_is_down, mut drawn) = (false, 0);
    let last = thinned.len().saturating_sub(1).max(1);
    for (n, value) in thinned.iter().enumerate() {
        let Some(value) = value else {
            pen_is_down = false;
            continue;
        };
        #[expect(clippy::cast_precision_loss, reason = "some hundred points")]
        let x = WIDTH * n as f64 / last as f64;
        let y = HEIGHT - 2.0 - (HEIGHT - 4.0) * (value / top).clamp(0.0, 1.0);
        let verb = if pen_is_down { 'L' } else { 'M' };
        let _ = write!(d, "{verb}{x:.1} {y:.1}");
        let next_is_there = thinned.get(n + 1).is_some_and(Option::is_some);
        if !pen_is_down && !next_is_there {
            // Nothing before it and nothing after it: a dot, by the line's round end.
            d.push_str("h.01");
        }
        pen_is_down = true;
        drawn += 1;
    }
    // The only sample there is: a level line, so that the chart is not empty.
    if drawn == 1 && thinned.len() == 1 {
        let _ = write!(d, "H{WIDTH}");
    }
    d
}

/// The same with fewer points: the mean of each group's.
fn thin(values: &[Option<f64>]) -> Vec<Option<f64>> {
    let size = values.len().div_ceil(POINTS).max(1);
    let mean = |group: &[Option<f64>]| {
        let there: Vec<f64> = group.iter().flatten().copied().collect();
        #[expect(clippy::cast_precision_loss, reason = "some samples")]
        (!there.is_empty()).then(|| there.iter().sum::<f64>() / there.len() as f64)
    };
    values.chunks(size).map(mean).collect()
}

/// A round number that is not below the highest value.
fn nice(highest: f64) -> f64 {
    if highest <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(highest.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|top| *top >= highest).unwrap_or(highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(values: Vec<Option<f64>>) -> Chart {
        let times: Vec<Timestamp> =
            (0..values.len()).map(|n| Timestamp::from_second(n as i64 * 5).unwrap()).collect();
        let line = Line { name: "ready".into(), class: "a", values };
        draw(("pool", "Pool"), &times, vec![line], None, |value| format!("{value:.0}"))
    }

    fn xs(chart: &Chart) -> Vec<f64> {
        let d = chart.svg.split("class=\"line a\" d=\"").nth(1).unwrap().split('"').next().unwrap();
        d.split(['M', 'L']).skip(1).map(|it| it.split(' ').next().unwrap().parse().unwrap()).collect()
    }

    #[test]
    fn few_points_fill_the_width_as_many_do() {
        for count in [2, 3, 50, 720] {
            let found = xs(&chart(vec![Some(1.0); count]));
            assert_eq!((found[0], *found.last().unwrap()), (0.0, WIDTH), "{count} points");
            assert!(found.len() <= POINTS);
        }
        assert!(chart(vec![Some(1.0)]).svg.contains(&format!("H{WIDTH}")), "one is a level line");
    }

    #[test]
    fn nothing_in_between_is_a_gap_and_a_value_alone_a_dot() {
        let drawn = chart(vec![Some(1.0), Some(2.0), None, Some(1.0), None]);
        assert_eq!(drawn.svg.matches('M').count(), 3 + 2, "three rules, two pieces: {}", drawn.svg);
        assert!(drawn.svg.contains("h.01"));
        assert_eq!(drawn.legend[0].last, "1");
        let nothing = chart(vec![None, None]);
        assert!(nothing.is_empty && !nothing.svg.contains("line a"));
        assert_eq!(nothing.legend[0].last, "–");
    }

    #[test]
    fn the_top_is_round_and_not_below_the_highest() {
        for (highest, top) in [(0.0, 1.0), (0.7, 1.0), (3.0, 5.0), (95.0, 100.0), (101.0, 200.0), (2.0, 2.0)]
        {
            assert!((nice(highest) - top).abs() < 1e-9, "{highest}: {}", nice(highest));
        }
    }
}
