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
    #[command(flatten)]
    called: Called,
}

/// A command that writes a program's manual pages.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// The folder for the pages, such as ~/.local/share/man/man1.
    folder: PathBuf,
    #[command(flatten)]
    called: Called,
}

#[derive(Debug, clap::Args)]
struct Called {
    /// The name by which the program is called, where that is another.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

impl Called {
    /// The command by this name, with the name.
    fn command(&self, command: Command) -> (Command, String) {
        let name = self.name.clone().unwrap_or_else(|| command.get_name().to_owned());
        (command.bin_name(&name).display_name(&name), name)
    }
}

impl CompletionsArgs {
    /// The script for the shell.
    pub fn script(&self, command: Command) -> String {
        let (mut command, name) = self.called.command(command);
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
        let (command, _) = self.called.command(command);
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn scripts_and_pages_have_the_name_by_which_the_program_is_called() {
        let command = || Command::new("worker").about("Trains").subcommand(Command::new("join").about("Joins a run"));
        for (name, expected) in [(None, "worker"), (Some("ringleader-worker".to_owned()), "ringleader-worker")] {
            let called = || Called { name: name.clone() };
            for (shell, line) in [
                (Shell::Bash, format!("-o default {expected}")),
                (Shell::Zsh, format!("#compdef {expected}\n")),
                (Shell::Fish, format!("complete -c {expected} ")),
            ] {
                let script = CompletionsArgs { shell, called: called() }.script(command());
                assert!(script.contains(&line), "{shell}: {line} is not in {script}");
            }
            let folder = tempfile::tempdir().unwrap();
            let written = ManArgs { folder: folder.path().to_owned(), called: called() }.write(command()).unwrap();
            assert_eq!(written, 2);
            for (file, usage) in
                [(format!("{expected}.1"), expected.to_owned()), (format!("{expected}-join.1"), format!("{expected} join"))]
            {
                let page = std::fs::read_to_string(folder.path().join(&file)).unwrap().replace("\\-", "-");
                assert!(page.contains(&usage), "{file}: {page}");
            }
        }
    }
}
