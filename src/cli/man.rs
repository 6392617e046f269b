//! `musherfs man`: manual pages, made of the same words as `--help`, and prose around them.

mod page;

use std::fs;
use std::path::PathBuf;

use super::failure::Failure;
use super::output;
use crate::error::Error;

/// Print a manual page, or write those of all commands
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs man | man -l -
  musherfs man mount | man -l -
  musherfs man musherfs.conf | man -l -
  musherfs man --dir ~/.local/share/man/man1")]
pub(super) struct Args {
    /// Of which command, such as `mount` or `cache clean`, or musherfs.conf for the settings
    #[arg(value_name = "PAGE", conflicts_with = "dir")]
    page: Vec<String>,

    /// Write a page for each command into this directory, which is created if it is missing
    #[arg(long)]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args, mut command: clap::Command) -> Result<(), Failure> {
    command = command.disable_help_subcommand(true);
    command.build();
    if let Some(dir) = &args.dir {
        let written = fs::create_dir_all(dir).and_then(|()| {
            page::all(&command).try_for_each(|(name, text)| fs::write(dir.join(name), text))
        });
        return written.map_err(|error| Error::io(dir, error).into());
    }
    match args.page.as_slice() {
        [name] if name == page::SETTINGS => output::write_all(page::settings(&command).as_bytes()),
        names => {
            let mut found = &command;
            for name in names {
                found = found.find_subcommand(name).ok_or_else(|| {
                    Failure::usage(format!("there is no command `{}`", names.join(" ")))
                        .with_hint(Some("`musherfs --help` lists the commands"))
                })?;
            }
            output::write_all(page::command(found).as_bytes())
        }
    }
}
