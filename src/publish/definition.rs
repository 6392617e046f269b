//! `musher.yaml`: what a publisher writes next to the files.
//!
//! Two shapes are in use, told apart by their first keys.
//!
//! ```yaml
//! # v1alpha1                          # the shape of the public examples
//! namespace: acme                     name: acme/code-review
//! slug: code-review                   version: 1.2.0
//! version: 1.2.0                      assets:
//! name: Code review                     - logical_path: prompts/review.md
//! assets:                                 asset_type: prompt
//!   - id: review
//!     src: prompts/review.md
//! ```
//!
//! The first has a published schema and is held to it: no unknown keys, lower-case names, unique
//! ids, and description, readme and license for a public bundle. The second has none: unknown keys
//! pass. In both an asset's path is where its file lies, and a file may not be reached through a
//! link that leaves the directory.
//!
//! Everything that is wrong is told at once, each with its line: a publisher who mends one thing does
//! not want to hear of the next only then.

mod lines;
mod shapes;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use self::lines::{Lines, Place};
use super::{Asset, MAX_ASSET, Problem, Publication, PublishError, Visibility};
use crate::reference::{LogicalPath, Version, VersionRef};

/// The names a definition may have, in the order they are looked for.
const NAMES: [&str; 2] = ["musher.yaml", "musher.yml"];

/// Either shape, as far as it could be understood.
struct Definition {
    /// Missing only if a problem says why.
    reference: Option<VersionRef>,
    name: String,
    description: Option<String>,
    visibility: Visibility,
    keywords: Vec<String>,
    readme: Option<String>,
    license: Option<String>,
    license_file: Option<(String, &'static str)>,
    repository: Option<String>,
    homepage: Option<String>,
    annotations: BTreeMap<String, String>,
    assets: Vec<Listed>,
}

/// A file that a definition lists.
struct Listed {
    path: String,
    asset_type: &'static str,
    media_type: Option<String>,
    place: Place,
}

impl Publication {
    /// Reads the bundle in `dir`: its `musher.yaml` or `musher.yml` and every file that it lists.
    ///
    /// # Errors
    ///
    /// [`PublishError::NoDefinition`]; [`PublishError::Definition`] with all that is wrong with the
    /// definition and the files that it names; a rule of [`Publication::check`].
    pub fn read(dir: &Path) -> Result<Self, PublishError> {
        let path = NAMES
            .iter()
            .map(|name| dir.join(name))
            .find(|path| path.exists())
            .ok_or_else(|| PublishError::NoDefinition {
                dir: dir.to_owned(),
            })?;
        let unreadable = |source| PublishError::Unreadable {
            path: path.clone(),
            source,
        };
        let text = std::fs::read_to_string(&path).map_err(unreadable)?;
        let root = dir.canonicalize().map_err(unreadable)?;
        Draft::new(path).read(&text, &Root { root })
    }

    /// Reads a bundle whose files are not in a directory: `definition` is the text of its
    /// `musher.yaml`, and `file` finds a file by its path.
    ///
    /// # Errors
    ///
    /// As [`Publication::read`].
    pub fn from_parts(
        definition: &str,
        file: impl Fn(&str) -> Option<&'static [u8]>,
    ) -> Result<Self, PublishError> {
        Draft::new(NAMES[0].into()).read(definition, &file)
    }
}

/// Where a definition's files come from.
trait Files {
    fn read(&self, path: &str) -> Result<Vec<u8>, PublishError>;
}

struct Root {
    root: PathBuf,
}

impl Files for Root {
    fn read(&self, relative: &str) -> Result<Vec<u8>, PublishError> {
        let path = self.root.join(relative);
        let unreadable = |source| PublishError::Unreadable {
            path: path.clone(),
            source,
        };
        let real = path.canonicalize().map_err(unreadable)?;
        if !real.starts_with(&self.root) {
            return Err(PublishError::Outside {
                path: relative.to_owned(),
            });
        }
        let metadata = real.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(unreadable(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a file",
            )));
        }
        // Before reading: a mistyped path may name something huge.
        if metadata.len() > MAX_ASSET as u64 {
            return Err(PublishError::TooLarge {
                path: relative.to_owned(),
                size: metadata.len(),
            });
        }
        std::fs::read(&real).map_err(unreadable)
    }
}

impl<F: Fn(&str) -> Option<&'static [u8]>> Files for F {
    fn read(&self, path: &str) -> Result<Vec<u8>, PublishError> {
        self(path)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| PublishError::Unreadable {
                path: path.into(),
                source: io::ErrorKind::NotFound.into(),
            })
    }
}

/// A definition that is being read, and what was found wrong with it so far.
struct Draft {
    path: PathBuf,
    lines: Lines,
    problems: Vec<Problem>,
    /// Paths of files that were told to be unusable.
    unusable: HashSet<String>,
}

impl Draft {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            lines: Lines::default(),
            problems: Vec::new(),
            unusable: HashSet::new(),
        }
    }

    fn read(mut self, text: &str, files: &dyn Files) -> Result<Publication, PublishError> {
        let publication = self
            .parse(text)
            .and_then(|definition| definition.load(files, &mut self))
            .filter(|_| self.problems.is_empty());
        let Some(publication) = publication else {
            self.problems.sort_by_key(|problem| problem.line);
            return Err(PublishError::Definition {
                path: self.path,
                problems: self.problems,
            });
        };
        publication.check()?;
        Ok(publication)
    }

    fn wrong(&mut self, place: Place, reason: impl Into<String>) {
        self.problems.push(Problem {
            line: self.lines.of(place),
            reason: reason.into(),
            hint: None,
        });
    }

    fn wrong_file(&mut self, place: Place, error: &PublishError) {
        self.problems.push(Problem {
            line: self.lines.of(place),
            reason: error.to_string(),
            hint: Some(error.hint()),
        });
    }

    /// Notes why text is no YAML, or not of the types that are expected.
    fn not_understood(&mut self, error: &serde_saphyr::Error) {
        // The parser's messages begin with the place and continue with a drawing of it.
        let text = error.without_snippet().to_string();
        let text = text.lines().next().unwrap_or_default();
        self.problems.push(Problem {
            line: error.location().map(|place| place.line()),
            reason: text.trim_start_matches("error: ").to_owned(),
            hint: None,
        });
    }

    fn parse(&mut self, text: &str) -> Option<Definition> {
        let definition = match Lines::read(text) {
            Ok(lines) => {
                self.lines = lines;
                shapes::define(text, self)
            }
            Err(error) => Err(error),
        };
        match definition {
            Ok(definition) => {
                definition.validate(self);
                Some(definition)
            }
            Err(error) => {
                self.not_understood(&error);
                None
            }
        }
    }

    /// A value that must be there.
    fn required(&mut self, place: Place, value: Option<String>) -> Option<String> {
        if value.is_none() {
            self.wrong(place, format!("{} is missing", place.name()));
        }
        value
    }

    fn version(&mut self, text: Option<String>) -> Option<Version> {
        let place = Place::Key("version");
        let text = self.required(place, text)?;
        let version = text.parse();
        if version.is_err() {
            let reason = format!("version {text:?} is not MAJOR.MINOR.PATCH, such as 1.0.0");
            self.wrong(place, reason);
        }
        version.ok()
    }

    fn visibility(&mut self, text: Option<&str>) -> Visibility {
        match text {
            None | Some("private") => Visibility::Private,
            Some("public") => Visibility::Public,
            Some(other) => {
                let reason = format!("visibility {other:?} is not private or public");
                self.wrong(Place::Key("visibility"), reason);
                Visibility::Private
            }
        }
    }

    /// The file at `path`, if it can be had. What is wrong with it is told once, however many places
    /// name it.
    fn file(
        &mut self,
        files: &dyn Files,
        place: Place,
        text: &str,
    ) -> Option<(LogicalPath, Vec<u8>)> {
        let path = text.parse::<LogicalPath>().map_err(|source| {
            let path = text.chars().take(200).collect();
            PublishError::BadPath { path, source }
        });
        let found = path.and_then(|path| {
            let bytes = files.read(path.as_str())?;
            Asset::check_bytes(path.as_str(), &bytes)?;
            Ok((path, bytes))
        });
        if let Err(error) = &found
            && self.unusable.insert(text.to_owned())
        {
            self.wrong_file(place, error);
        }
        found.ok()
    }
}

impl Definition {
    fn load(self, files: &dyn Files, draft: &mut Draft) -> Option<Publication> {
        let readme = self.readme.as_ref().and_then(|path| {
            let (_, bytes) = draft.file(files, Place::Key("readme"), path)?;
            String::from_utf8(bytes).ok()
        });
        if let Some((path, key)) = &self.license_file {
            draft.file(files, Place::Key(key), path);
        }
        let mut assets = Vec::with_capacity(self.assets.len());
        for listed in self.assets {
            if let Some((path, bytes)) = draft.file(files, listed.place, &listed.path) {
                assets.push(Asset {
                    path,
                    asset_type: listed.asset_type.to_owned(),
                    media_type: listed.media_type,
                    bytes: bytes.into(),
                });
            }
        }
        Some(Publication {
            reference: self.reference?,
            name: self.name,
            description: self.description,
            visibility: self.visibility,
            readme,
            license: self.license,
            keywords: self.keywords,
            repository: self.repository,
            homepage: self.homepage,
            annotations: self.annotations,
            assets,
        })
    }

    /// The rules that both shapes share.
    fn validate(&self, draft: &mut Draft) {
        let length = |what, text: &str, most: usize| match text.chars().count() {
            0 => Some(format!("{what} is empty")),
            count if count > most => Some(format!("{what} has more than {most} characters")),
            _ => None,
        };
        let place = Place::Key("name");
        if draft.lines.has(place)
            && let Some(reason) = length("name", &self.name, 255)
        {
            draft.wrong(place, reason);
        }
        if let Some(description) = &self.description
            && description.chars().count() > 1000
        {
            let reason = "description has more than 1000 characters";
            draft.wrong(Place::Key("description"), reason);
        }
        let place = Place::Key("keywords");
        if self.keywords.len() > 20 {
            draft.wrong(place, "more than 20 keywords");
        }
        let mut seen = HashSet::new();
        for keyword in &self.keywords {
            if let Some(reason) = length("a keyword", keyword, 64) {
                draft.wrong(place, reason);
            }
            if !seen.insert(keyword) {
                draft.wrong(place, format!("keyword {keyword:?} is listed twice"));
            }
        }
        for asset in &self.assets {
            if let Some(media_type) = &asset.media_type
                && !is_media_type(media_type)
            {
                draft.wrong(asset.place, format!("{media_type:?} is not a media type"));
            }
        }
        if self.visibility == Visibility::Public {
            let missing: Vec<&str> = [
                ("description", self.description.is_some()),
                ("readme", self.readme.is_some()),
                (
                    "license or licenseFile",
                    self.license.is_some() || self.license_file.is_some(),
                ),
            ]
            .iter()
            .filter_map(|&(what, present)| (!present).then_some(what))
            .collect();
            if !missing.is_empty() {
                let reason = format!("a public bundle needs {}", missing.join(", "));
                draft.wrong(Place::Key("visibility"), reason);
            }
        }
    }
}

/// `^[a-z]+/[a-z0-9.+-]+$`
fn is_media_type(text: &str) -> bool {
    text.split_once('/').is_some_and(|(kind, rest)| {
        !kind.is_empty()
            && kind.bytes().all(|b| b.is_ascii_lowercase())
            && !rest.is_empty()
            && rest
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".+-".contains(&b))
    })
}

#[cfg(test)]
mod tests;
