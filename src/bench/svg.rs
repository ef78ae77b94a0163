//! A drawing as SVG, readable on light and on dark pages. Pure.
//!
//! Written by hand: three plots and a timeline need lines, boxes and words, and
//! no crate for charts is small. Colours are classes, so one style sheet decides
//! for both kinds of page; what is measured is also said in words and tips.

use std::fmt::Write as _;

/// How many colours there are for things side by side.
pub const COLOURS: usize = 8;

/// Between a plot and the drawing's edge: words and numbers at the axes.
const MARGIN: Margin = Margin { top: 40.0, right: 24.0, bottom: 44.0, left: 84.0 };

/// The style sheet: colours that can be told apart by most eyes, on both grounds.
const STYLE: &str = "svg{font:12px system-ui,sans-serif;--ink:#1f2328;--faint:#d0d7de;--c0:#0969da;--c1:#bc4c00;\
--c2:#1a7f37;--c3:#8250df;--c4:#bf8700;--c5:#cf222e;--c6:#0f766e;--c7:#8c959f}\
@media(prefers-color-scheme:dark){svg{--ink:#e6edf3;--faint:#3d444d;--c0:#58a6ff;--c1:#f0883e;--c2:#3fb950;\
--c3:#bc8cff;--c4:#e3b341;--c5:#ff7b72;--c6:#39c5cf;--c7:#8b949e}}\
text{fill:var(--ink)}.h{font-size:14px;font-weight:600}.axis{stroke:var(--ink);stroke-width:1}\
.grid{stroke:var(--faint);stroke-width:1}";

#[derive(Debug, Clone, Copy)]
struct Margin {
    top: f64,
    right: f64,
    bottom: f64,
    left: f64,
}

/// Where a word stands relative to its point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// It begins there.
    Start,
    /// Its middle is there.
    Middle,
    /// It ends there.
    End,
}

/// A box with a tip.
#[derive(Debug, Clone, Copy)]
pub struct Bar<'a> {
    /// Its left edge.
    pub x: f64,
    /// Its upper edge.
    pub y: f64,
    /// Its width; what is narrower than a hair is drawn as one.
    pub width: f64,
    /// Its height.
    pub height: f64,
    /// Its colour.
    pub colour: usize,
    /// What the pointer is told.
    pub tip: &'a str,
}

/// A drawing that grows.
#[derive(Debug)]
pub struct Svg {
    width: f64,
    height: f64,
    title: String,
    body: String,
}

impl Svg {
    /// An empty one with a title above.
    #[must_use]
    pub fn new(width: f64, height: f64, title: &str) -> Self {
        let mut svg = Self { width, height, title: escaped(title), body: String::new() };
        let heading = svg.title.clone();
        svg.push(format_args!("<text class=\"h\" x=\"12\" y=\"22\">{heading}</text>"));
        svg
    }

    fn push(&mut self, element: std::fmt::Arguments<'_>) {
        // A String takes everything.
        let _ = writeln!(self.body, "{element}");
    }

    /// Words.
    pub fn text(&mut self, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escaped(text);
        self.push(format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"));
    }

    /// A box.
    pub fn bar(&mut self, bar: Bar<'_>) {
        let Bar { x, y, width, height, colour, tip } = bar;
        let (width, colour, tip) = (width.max(0.3), colour % COLOURS, escaped(tip));
        self.push(format_args!(
            "<rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{height:.1}\" \
             fill=\"var(--c{colour})\"><title>{tip}</title></rect>"
        ));
    }

    /// A line of the axes (`axis`) or behind the data (`grid`).
    pub fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.push(format_args!(
            "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
        ));
    }

    /// A line through points.
    pub fn path(&mut self, points: &[(f64, f64)], colour: usize) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let (points, colour) = (points.join(" "), colour % COLOURS);
        self.push(format_args!(
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"var(--c{colour})\" stroke-width=\"2\"/>"
        ));
    }

    /// A point.
    pub fn dot(&mut self, (x, y): (f64, f64), colour: usize, tip: &str) {
        let (colour, tip) = (colour % COLOURS, escaped(tip));
        self.push(format_args!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"var(--c{colour})\"><title>{tip}</title></circle>"
        ));
    }

    /// Colours and their names in one row, from `x` on.
    pub fn legend(&mut self, (mut x, y): (f64, f64), names: &[(usize, &str)]) {
        for (colour, name) in names {
            self.bar(Bar { x, y: y - 9.0, width: 10.0, height: 10.0, colour: *colour, tip: name });
            self.text((x + 14.0, y), Anchor::Start, name);
            // Letters of this size are about 6.6 wide.
            x += 32.0 + name.chars().count() as f64 * 6.6;
        }
    }

    /// The document.
    #[must_use]
    pub fn finish(self) -> String {
        let Self { width, height, title, body } = self;
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\" aria-label=\"{title}\">\n<style>{STYLE}</style>\n{body}</svg>\n"
        )
    }
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // XML knows no other control characters.
            letter if letter.is_control() => out.push(' '),
            letter => out.push(letter),
        }
    }
    out
}

/// How values become places on an axis.
#[derive(Debug, Clone, Copy)]
pub enum Scale {
    /// From 0 to the value.
    Linear(f64),
    /// From one power of ten to another.
    Log(f64, f64),
    /// Of rows, which are placed by hand: no numbers.
    Rows,
}

impl Scale {
    /// From 0, or a value above it, up to a round value.
    #[must_use]
    pub fn linear(most: f64) -> Self {
        let step = step(most);
        Self::Linear(((most / step).ceil() * step).max(step))
    }

    /// Whole powers of ten around these values, which are above 0.
    #[must_use]
    pub fn log(least: f64, most: f64) -> Self {
        let (low, high) = (least.max(1e-3).log10().floor(), most.max(1e-3).log10().ceil());
        Self::Log(10_f64.powf(low), 10_f64.powf(high.max(low + 1.0)))
    }

    /// 0 at the axis's beginning, 1 at its end.
    #[must_use]
    pub fn place(self, value: f64) -> f64 {
        match self {
            Self::Linear(most) => value / most,
            Self::Log(least, most) => (value.max(least) / least).log10() / (most / least).log10(),
            Self::Rows => 0.0,
        }
    }

    /// Where numbers stand.
    fn ticks(self) -> Vec<f64> {
        match self {
            Self::Linear(most) => {
                let step = step(most);
                // As whole numbers, so that no tick is lost to rounding.
                (0..=(most / step).round() as u32).map(|n| f64::from(n) * step).collect()
            }
            Self::Log(least, most) => {
                let decades = (most / least).log10().round() as i32;
                (0..=decades).map(|n| least * 10_f64.powi(n)).collect()
            }
            Self::Rows => Vec::new(),
        }
    }
}

/// A round distance of which about five fit in.
fn step(most: f64) -> f64 {
    let rough = (most / 5.0).max(1e-6);
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough * 0.999);
    factor.unwrap_or(10.0) * power
}

/// The area between the axes of a drawing.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    x: Scale,
    y: Scale,
}

/// What stands at the axes, each with its unit.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// Below.
    pub x: &'a str,
    /// To the left, above the axis.
    pub y: &'a str,
}

impl Area {
    /// Draws axes, numbers and grid.
    #[must_use]
    pub fn draw(svg: &mut Svg, (x, y): (Scale, Scale), labels: Labels<'_>) -> Self {
        let area = Self {
            left: MARGIN.left,
            top: MARGIN.top + 18.0,
            width: svg.width - MARGIN.left - MARGIN.right,
            height: svg.height - MARGIN.top - MARGIN.bottom - 18.0,
            x,
            y,
        };
        let (right, bottom) = (area.left + area.width, area.top + area.height);
        for tick in x.ticks() {
            let at = area.left + x.place(tick) * area.width;
            svg.line("grid", (at, area.top), (at, bottom));
            svg.text((at, bottom + 16.0), Anchor::Middle, &number(tick));
        }
        for tick in y.ticks() {
            let at = bottom - y.place(tick) * area.height;
            svg.line("grid", (area.left, at), (right, at));
            svg.text((area.left - 6.0, at + 4.0), Anchor::End, &number(tick));
        }
        svg.line("axis", (area.left, area.top), (area.left, bottom));
        svg.line("axis", (area.left, bottom), (right, bottom));
        svg.text((area.left + area.width / 2.0, bottom + 36.0), Anchor::Middle, labels.x);
        svg.text((8.0, area.top - 10.0), Anchor::Start, labels.y);
        area
    }

    /// The point of two values.
    #[must_use]
    pub fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let right = self.left + self.x.place(x) * self.width;
        (right, self.top + self.height - self.y.place(y) * self.height)
    }
}

/// A number without digits that say nothing.
fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_numbers() {
        assert_eq!(Scale::linear(47.0).ticks(), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(Scale::linear(2612.0).ticks().last(), Some(&3000.0));
        assert_eq!(Scale::log(0.8, 470.0).ticks(), [0.1, 1.0, 10.0, 100.0, 1000.0]);
        assert!(Scale::linear(0.0).ticks().len() > 1, "nothing measured is no reason to fail");
        assert_eq!((number(0.5), number(1000.0), number(0.0)), ("0.5".into(), "1000".into(), "0".into()));
    }

    #[test]
    fn places_go_from_0_to_1() {
        for scale in [Scale::linear(50.0), Scale::log(0.1, 100.0)] {
            let ticks = scale.ticks();
            assert!(scale.place(ticks[0]).abs() < 1e-9);
            assert!((scale.place(*ticks.last().unwrap()) - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn words_cannot_break_out() {
        let mut svg = Svg::new(10.0, 10.0, "a<b");
        svg.text((0.0, 0.0), Anchor::Start, "\"</svg>&\u{7}");
        let document = svg.finish();
        assert!(document.contains("a&lt;b") && document.contains("&quot;&lt;/svg&gt;&amp; </text>"));
        assert_eq!(document.matches("</svg>").count(), 1);
        assert!(document.contains("prefers-color-scheme:dark"));
    }
}
