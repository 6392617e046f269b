//! The commands in groups, as `musherfs --help` shows them.
//!
//! clap lists subcommands under one heading; here the list is put together of the same names and
//! descriptions. A command that is in no group would not be shown: a test keeps that from happening.

use std::fmt::Write as _;

use clap::Command;

/// What the commands are for, and which ones.
const GROUPS: [(&str, &[&str]); 5] = [
    (
        "Mounting",
        &["mount", "umount", "upgrade", "status", "events", "log"],
    ),
    (
        "Bundles and their cache",
        &[
            "ls", "resolve", "load", "pin", "unpin", "pins", "lock", "cache", "export", "import",
        ],
    ),
    (
        "Publishing and registries",
        &["publish", "yank", "unyank", "registry"],
    ),
    ("Diagnosis", &["why", "doctor", "bugreport"]),
    ("This program", &["completions", "man"]),
];

/// The same command line, whose help shows the commands in groups.
pub(super) fn grouped(command: Command) -> Command {
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{}{}\n{{options}}{{after-help}}",
        listed(&command),
        heading(&command, "Options"),
    );
    command.help_template(template)
}

fn heading(command: &Command, title: &str) -> String {
    let style = command.get_styles().get_header();
    format!("{style}{title}:{style:#}")
}

fn listed(command: &Command) -> String {
    let name_style = command.get_styles().get_literal();
    let names = command
        .get_subcommands()
        .map(|below| below.get_name().len());
    let width = names.max().unwrap_or_default();
    let mut text = String::new();
    for (title, names) in GROUPS {
        let _ = writeln!(text, "{}", heading(command, title));
        for below in names
            .iter()
            .filter_map(|name| command.find_subcommand(name))
        {
            let name = below.get_name();
            let about = below.get_about().map(ToString::to_string);
            let padding = " ".repeat(width - name.len());
            let about = about.unwrap_or_default();
            let _ = writeln!(text, "  {name_style}{name}{name_style:#}{padding}  {about}");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_is_in_one_group() {
        let command = crate::cli::Cli::command();
        let visible = command
            .get_subcommands()
            .filter(|below| !below.is_hide_set());
        let all: BTreeSet<&str> = visible.map(Command::get_name).collect();
        let listed: Vec<&str> = GROUPS
            .iter()
            .flat_map(|(_, names)| *names)
            .copied()
            .collect();
        assert_eq!(listed.len(), all.len(), "{listed:?}");
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), all);
    }
}
