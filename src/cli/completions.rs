//! `musherfs completions`: scripts for shells, which also complete the names of cached bundles.
//!
//! The scripts come from the command line's definition. What they cannot know, the bundles, they ask
//! the program for while the user types ([`refs`]): from the cache only, without a word on failure.

mod refs;

use std::ffi::OsString;
use std::io::Write as _;

use clap_complete::Shell;

use super::failure::Failure;
use super::output;

/// The hidden subcommand that completes: followed by `refs` and what was typed so far.
pub(super) const SUBCOMMAND: &str = "__complete";

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
    let script = String::from_utf8_lossy(&script).into_owned();
    let script = with_refs(args.shell, &script, &takers(command));
    output::write_all(script.as_bytes())
}

/// The commands that take references.
fn takers(command: &clap::Command) -> Vec<String> {
    let takes = |command: &&clap::Command| {
        let mut positionals = command.get_positionals();
        positionals.any(|argument| {
            let names = argument.get_value_names().unwrap_or_default();
            names.iter().any(|name| name == "REF") || command.get_name() == "why"
        })
    };
    let found = command.get_subcommands().filter(takes);
    found.map(|command| command.get_name().to_owned()).collect()
}

/// Adds the completion of references to a generated script.
fn with_refs(shell: Shell, script: &str, takers: &[String]) -> String {
    match shell {
        Shell::Bash => {
            let addition = include_str!("completions/refs.bash");
            let addition = addition.replace("@COMMANDS@", &takers.join("|"));
            format!("{script}\n{addition}")
        }
        Shell::Zsh => {
            // `':reference -- …:_default'` and its kin.
            let named = |line: &str| {
                let line = line.trim_start();
                [":reference", "*:reference", "::reference", "*::reference"]
                    .iter()
                    .any(|name| line.trim_start_matches('\'').starts_with(name))
            };
            let lines = script.lines().map(|line| {
                if named(line) {
                    line.replace(":_default'", ":_musherfs_refs'")
                } else {
                    line.to_owned()
                }
            });
            let mut lines: Vec<String> = lines.collect();
            // After `#compdef`, which must stay first.
            lines.insert(1, include_str!("completions/refs.zsh").to_owned());
            lines.join("\n") + "\n"
        }
        Shell::Fish => {
            let addition = include_str!("completions/refs.fish");
            let addition = addition.replace("@COMMANDS@", &takers.join(" "));
            format!("{script}\n{addition}")
        }
        _ => script.to_owned(),
    }
}

/// Answers a script that asks; a shell must not be disturbed by errors.
pub(super) fn complete(arguments: &[OsString]) {
    if let [kind, typed, ..] = arguments
        && kind == "refs"
        && let Some(typed) = typed.to_str()
    {
        let mut text = String::new();
        for name in refs::starting_with(typed) {
            text.push_str(&name);
            text.push('\n');
        }
        let _ = std::io::stdout().lock().write_all(text.as_bytes());
    }
}
