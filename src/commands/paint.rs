//! Colours, for terminals alone: what goes elsewhere has none. NO_COLOR, CLICOLOR
//! and CLICOLOR_FORCE count as everywhere.

use anstream::{AutoStream, ColorChoice};
use anstyle::{AnsiColor, Style};
use comfy_table::presets::NOTHING;
use comfy_table::{Cell, Color, Table};

/// What a word means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    /// As it should be.
    Good,
    /// On its way, or to be looked at.
    Notice,
    /// Broken.
    Bad,
}

impl Tone {
    /// How a text is written in it.
    pub(super) const fn style(self) -> Style {
        match self {
            Self::Good => AnsiColor::Green.on_default(),
            Self::Notice => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
        }
    }

    /// A table's cell in it.
    pub(super) fn cell(self, text: impl Into<String>) -> Cell {
        let cell = Cell::new(text.into());
        if !colours() {
            return cell;
        }
        cell.fg(match self {
            Self::Good => Color::Green,
            Self::Notice => Color::Yellow,
            Self::Bad => Color::Red,
        })
    }
}

/// Whether stdout is to have colours.
fn colours() -> bool {
    AutoStream::choice(&std::io::stdout()) != ColorChoice::Never
}

/// An empty table with these titles and no lines.
pub(super) fn table<const N: usize>(titles: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(titles);
    if colours() {
        // The table itself asks only whether it is a terminal.
        table.enforce_styling();
    }
    table
}

/// Prints what went wrong, as clap prints a wrong command line.
pub fn error(what: impl std::fmt::Display) {
    let style = Tone::Bad.style();
    anstream::eprintln!("{style}error:{style:#} {what}");
}
