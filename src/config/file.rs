//! `config.yaml`, flattened: `mount.readahead` → `4MiB`.
//!
//! The file is shared with the Go tools. Of theirs only the names that this program knows are read;
//! whatever else they keep there is skipped unseen. Everything below `mount:` must be known.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{API_URL, CA_FILE, MIRRORS, MOUNT_NAMES, OCI_REGISTRY_URL};
use crate::error::{Error, Result};

/// The settings of the file. A file that does not exist has none.
#[derive(Debug, Default)]
pub(super) struct File {
    path: PathBuf,
    values: BTreeMap<&'static str, String>,
}

impl File {
    /// Reads the file at `path`.
    pub(super) fn read(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Ok(Self::default())
            }
            Err(error) => Err(Error::Config(format!(
                "cannot read {}: {error}",
                path.display()
            ))),
        }
    }

    pub(super) fn parse(path: &Path, text: &str) -> Result<Self> {
        let mut file = Self {
            path: path.to_owned(),
            values: BTreeMap::new(),
        };
        // Also what is there when all lines are comments.
        if text.trim().is_empty() {
            return Ok(file);
        }
        let document: Value = serde_saphyr::from_str(text).map_err(|error| {
            Error::Config(format!("{}: {}", path.display(), error.without_snippet()))
        })?;
        let top = match &document {
            Value::Null => return Ok(file),
            Value::Object(top) => top,
            _ => return Err(file.problem("", "not a mapping of names to values")),
        };
        for names in [&API_URL, &CA_FILE, &OCI_REGISTRY_URL] {
            let (section, name) = names.file.split_once('.').unwrap_or(("", names.file));
            if let Some(value) = top.get(section).and_then(|section| section.get(name)) {
                file.insert(names.file, value)?;
            }
        }
        match top.get("mount") {
            None | Some(Value::Null) => {}
            Some(Value::Object(section)) => {
                for (name, value) in section {
                    file.insert(file.known(name)?, value)?;
                }
            }
            Some(_) => return Err(file.problem("mount", "not a mapping of names to values")),
        }
        Ok(file)
    }

    /// The value of a setting; never empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// What relative paths in the file start from.
    pub(super) fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// An error about the setting `name`.
    pub(super) fn problem(&self, name: &str, problem: &str) -> Error {
        let separator = if name.is_empty() { "" } else { ": " };
        Error::Config(format!(
            "{}: {name}{separator}{problem}",
            self.path.display()
        ))
    }

    fn known(&self, name: &str) -> Result<&'static str> {
        let own = |names: &'static super::Names| names.file.strip_prefix("mount.");
        if let Some(names) = MOUNT_NAMES.iter().find(|names| own(names) == Some(name)) {
            return Ok(names.file);
        }
        let known: Vec<_> = MOUNT_NAMES.iter().filter_map(|names| own(names)).collect();
        let problem = format!("no such setting; there are {}", known.join(", "));
        Err(self.problem(&format!("mount.{name}"), &problem))
    }

    fn insert(&mut self, name: &'static str, value: &Value) -> Result<()> {
        let text = match value {
            Value::Array(items) if name == MIRRORS.file => {
                let items: Option<Vec<_>> = items.iter().map(mirror).collect();
                items.map(|items| items.join(","))
            }
            Value::Array(items) => {
                let items: Option<Vec<_>> = items.iter().map(scalar).collect();
                items.map(|items| items.join(","))
            }
            value => scalar(value),
        };
        let text = text.ok_or_else(|| {
            self.problem(name, "not a single value or a list of what can stand here")
        })?;
        if !text.is_empty() {
            self.values.insert(name, text);
        }
        Ok(())
    }
}

/// A mirror as the command line spells it, from `{for: …, url: …, resolve: …}`.
fn mirror(value: &Value) -> Option<String> {
    let Value::Object(fields) = value else {
        return scalar(value);
    };
    let mut text = fields.get("url").and_then(scalar)?;
    for (name, value) in fields {
        match (name.as_str(), value) {
            ("url", _) | ("resolve", Value::Bool(false)) => {}
            ("resolve", Value::Bool(true)) => text.push_str("#resolve"),
            ("for", value) => text = format!("{}={text}", scalar(value)?),
            _ => return None,
        }
    }
    Some(text)
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some(String::new()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Array(_) | Value::Object(_) => None,
    }
}
