//! What a shell and `man` know of a command line, made from its definition.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Command;
use clap_complete::Shell;

/// A command that prints what a shell needs to complete a program's words.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// A command that writes a program's manual pages.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The folder for the pages, such as ~/.local/share/man/man1.
    folder: PathBuf,
}

impl CompletionsArgs {
    /// The script for the shell.
    pub fn script(&self, mut command: Command) -> String {
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        String::from_utf8_lossy(&script).trim_end().to_owned()
    }
}

impl ManArgs {
    /// Writes a page for the program and one for each of its commands; returns how many.
    pub fn write(&self, command: Command) -> Result<usize> {
        let folder = &self.folder;
        std::fs::create_dir_all(folder).with_context(|| format!("could not create `{}`", folder.display()))?;
        let mut command = command.disable_help_subcommand(true);
        command.build();
        pages(&command, folder)
    }
}

fn pages(command: &Command, folder: &Path) -> Result<usize> {
    let page = clap_mangen::Man::new(command.clone());
    let file = folder.join(page.get_filename());
    let mut text = Vec::new();
    page.render(&mut text)?;
    std::fs::write(&file, text).with_context(|| format!("could not write `{}`", file.display()))?;
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    shown.map(|command| pages(command, folder)).sum::<Result<usize>>().map(|below| below + 1)
}
