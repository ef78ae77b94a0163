//! `man`: the manual pages, made of what `--help` says.

use std::path::PathBuf;

use anyhow::Context as _;
use clap_mangen::Man as Page;

/// `man DIRECTORY`
#[derive(Debug, clap::Args)]
pub(super) struct Man {
    /// Where to; it must be there. Each command has a page
    directory: PathBuf,
}

impl Man {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let directory = &self.directory;
        let doing = || format!("cannot write manual pages to {}", directory.display());
        clap_mangen::generate_to(super::commands(), directory).with_context(doing)?;
        std::fs::write(directory.join(format!("{}.1", super::NAME)), first_page()?).with_context(doing)
    }
}

/// The program's own page. It alone has the settings, which all commands share.
fn first_page() -> std::io::Result<Vec<u8>> {
    let mut roff = Vec::new();
    let page = Page::new(super::commands());
    let settings = clap::Command::new(super::NAME).disable_help_flag(true).args(super::settings());
    page.render_title(&mut roff)?;
    page.render_name_section(&mut roff)?;
    page.render_synopsis_section(&mut roff)?;
    page.render_description_section(&mut roff)?;
    page.render_options_section(&mut roff)?;
    page.render_subcommands_section(&mut roff)?;
    Page::new(settings).render_options_section(&mut roff)?;
    page.render_version_section(&mut roff)?;
    Ok(roff)
}
