//! `musherfs completions`.

use clap_complete::Shell;

use super::failure::Failure;
use super::output;

/// Print a completion script for a shell
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs completions bash > ~/.local/share/bash-completion/completions/musherfs
  musherfs completions zsh > ~/.zfunc/_musherfs
  musherfs completions fish > ~/.config/fish/completions/musherfs.fish")]
pub(super) struct Args {
    shell: Shell,
}

pub(super) fn run(args: &Args, command: &mut clap::Command) -> Result<(), Failure> {
    // Into memory first: the generator panics when its writer fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "musherfs", &mut script);
    output::write_all(&script)
}
