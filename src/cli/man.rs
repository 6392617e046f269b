//! `musherfs man`.

use std::fs;
use std::path::PathBuf;

use clap_mangen::Man;

use super::failure::Failure;
use super::output;
use crate::error::Error;

/// Print the manual page, or write those of all commands
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs man | man -l -
  musherfs man --dir ~/.local/share/man/man1")]
pub(super) struct Args {
    /// Write a page for each command into this directory, which is created if it is missing
    #[arg(long)]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args, mut command: clap::Command) -> Result<(), Failure> {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        command.build();
        Man::new(command).render(&mut page)?;
        return output::write_all(&page);
    };
    fs::create_dir_all(dir)
        .and_then(|()| clap_mangen::generate_to(command, dir))
        .map_err(|error| Error::io(dir, error).into())
}
