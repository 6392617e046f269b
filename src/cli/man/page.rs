//! A command's manual page.
//!
//! Names, synopsis, description and options come from the command line's own definition. The text
//! below the help ("Examples:", "Environment:", …) is laid out as it stands, a section a heading;
//! what no command's help has room for is here.

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::config;

/// The page about settings.
pub(super) const SETTINGS: &str = "musherfs.conf";

/// What readers of a mount can meet.
const ERRORS: &str = "\
ENOENT        no such namespace, bundle, version or file; or hidden because it cannot be a file
EACCES        the registry refuses the key, or wants one; or a yanked version under --deny-yanked
EIO           wrong bytes from every source, or an answer that makes no sense
ETIMEDOUT     the deadline has passed (--metadata-timeout, --content-timeout)
EHOSTUNREACH  no source can be reached, or all of them keep failing
EROFS         somebody tried to write
ENOTCONN      the daemon is gone: `musherfs umount`, then mount again";

const SEE_ALSO: &str = "musherfs(1), musherfs-mount(1), musherfs-why(1), musherfs-doctor(1), \
musherfs.conf(5), fuse(4), mount(8), fusermount3(1)";

/// The pages of `command` and all commands below it, by file name.
pub(super) fn all(command: &Command) -> Box<dyn Iterator<Item = (String, String)> + '_> {
    let name = format!("{}.1", full_name(command));
    let below = command
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
        .flat_map(all);
    Box::new(std::iter::once((name, self::command(command))).chain(below))
}

fn full_name(command: &Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

/// The page of one command.
pub(super) fn command(command: &Command) -> String {
    let below = command
        .get_after_long_help()
        .or(command.get_after_help())
        .map(ToString::to_string)
        .unwrap_or_default();
    // The generated synopsis names options without their values; they are all told below it.
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:").trim().to_owned();
    let man = Man::new(command.clone().override_usage(usage));
    let mut page = Vec::new();
    let render = |page: &mut Vec<u8>| {
        man.render_title(page)?;
        man.render_name_section(page)?;
        man.render_synopsis_section(page)?;
        man.render_description_section(page)?;
        if command
            .get_arguments()
            .any(|argument| !argument.is_hide_set())
        {
            man.render_options_section(page)?;
        }
        if command
            .get_subcommands()
            .any(|command| !command.is_hide_set())
        {
            man.render_subcommands_section(page)?;
        }
        Ok::<_, std::io::Error>(())
    };
    // Writing into memory does not fail.
    let _ = render(&mut page);
    let mut roff = Roff::new();
    for (title, text) in sections(&below) {
        verbatim(&mut roff, &title, &text);
    }
    if matches!(
        full_name(command),
        "musherfs" | "musherfs-mount" | "musherfs-why"
    ) {
        verbatim(&mut roff, "ERRORS", ERRORS);
    }
    roff.control("SH", ["SEE ALSO"]).text([roman(SEE_ALSO)]);
    String::from_utf8_lossy(&page).into_owned() + &roff.to_roff()
}

/// Splits help into headings (lines that end with a colon) and what stands below them.
fn sections(text: &str) -> Vec<(String, String)> {
    let mut sections: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        match line
            .strip_suffix(':')
            .filter(|title| !title.starts_with(' '))
        {
            Some(title) => sections.push((title.to_uppercase(), String::new())),
            None => match sections.last_mut() {
                Some((_, body)) => {
                    body.push_str(line);
                    body.push('\n');
                }
                None if line.is_empty() => {}
                None => sections.push(("NOTES".to_owned(), format!("{line}\n"))),
            },
        }
    }
    sections
}

fn verbatim(roff: &mut Roff, title: &str, text: &str) {
    roff.control("SH", [title]).control("nf", []);
    for line in text.trim_end().lines() {
        roff.text([roman(line)]);
    }
    roff.control("fi", []);
}

/// The page about settings: what each is called on the command line, in the environment and in the
/// file.
pub(super) fn settings(command: &Command) -> String {
    let mount = command.find_subcommand("mount");
    let help = |flag: &str| {
        let long = flag.strip_prefix("--")?;
        let mut arguments = mount?.get_arguments();
        let argument = arguments.find(|argument| argument.get_long() == Some(long))?;
        let text = argument.get_help()?.to_string().replace('\n', " ");
        // The variable has a line of its own.
        Some(match text.split_once(" [env:") {
            Some((before, after)) => {
                let rest = after.split_once(']').map_or("", |(_, rest)| rest);
                format!("{before}{rest}")
            }
            None => text,
        })
    };
    let mut roff = Roff::new();
    let version = format!("musherfs {}", env!("CARGO_PKG_VERSION"));
    roff.control("TH", [SETTINGS, "5", "", version.as_str(), "File formats"]);
    roff.control("SH", ["NAME"])
        .text([roman("musherfs.conf - settings of musherfs")]);
    roff.control("SH", ["DESCRIPTION"]).text([roman(
        "Settings are read from config.yaml in the configuration directory that all Musher tools share, \
         ~/.config/musher, or the directory that MUSHER_CONFIG_HOME names; the system service reads \
         /etc/musher/config.yaml. For each setting the first of these that has a value wins: the command \
         line, the environment, the file, the default. Empty is unset. A value that cannot be used is an \
         error that names its place, and so is an unknown name below mount.",
    )]);
    verbatim(
        &mut roff,
        "EXAMPLE",
        "api:\n  url: https://api.musher.dev\nnetwork:\n  ca_cert_file: corporate.pem\nmount:\n  \
         namespaces: [acme, tools]\n  readahead: 4MiB\n  metadata_timeout: 10s",
    );
    roff.control("SH", ["SETTINGS"]);
    for (file, variable, flag) in config::names_of_settings() {
        roff.control("TP", []).text([bold(file)]);
        if let Some(help) = help(flag) {
            roff.text([roman(help)]);
        }
        roff.control("br", [])
            .text([roman(format!("Also {flag} and {variable}."))]);
    }
    roff.control("SH", ["KEYS"]).text([roman(
        "The API key is no setting. It is looked for in --api-key, MUSHER_API_KEY, the file of \
         --api-key-file, and where `musher login` puts it, in this order: the variable wins over all \
         files, also over one on the command line. Files are used only if nobody but their owner can read \
         them. The system service reads variables from /etc/musher/musherfs.env.",
    )]);
    verbatim(
        &mut roff,
        "FILES",
        "~/.config/musher/config.yaml        settings\n\
         ~/.cache/musher                     content, shared with the other Musher tools\n\
         ~/.local/state/musher/musherfs      journals, locks, a log where there is no journal\n\
         $XDG_RUNTIME_DIR/musher/musherfs    control sockets, and files that tell of moves\n\
         /etc/musher, /var/cache/musher, /var/lib/musher, /run/musher\n\
         \x20                                   the same of the system service",
    );
    roff.control("SH", ["SEE ALSO"]).text([roman(SEE_ALSO)]);
    roff.to_roff()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_is_split_at_its_headings() {
        let text = "Examples:\n  a: b\n\nExit status:\n  0 if all is well";
        assert_eq!(
            sections(text),
            [
                ("EXAMPLES".to_owned(), "  a: b\n\n".to_owned()),
                ("EXIT STATUS".to_owned(), "  0 if all is well\n".to_owned()),
            ]
        );
        assert_eq!(sections("one line")[0].0, "NOTES");
    }
}
