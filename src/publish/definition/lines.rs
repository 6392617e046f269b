//! Where the keys of a `musher.yaml` stand.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// A key of a definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// At the top.
    Key(&'static str),
    /// Of the asset with this number.
    Asset(usize, &'static str),
}

impl Place {
    /// What a message calls it.
    pub(super) fn name(self) -> String {
        match self {
            Self::Key(key) => key.to_owned(),
            Self::Asset(_, key) => format!("asset {key}"),
        }
    }
}

/// The keys of one mapping and the lines they are on, from 1.
#[derive(Debug, Default, PartialEq, Eq)]
struct Keys(Vec<(u64, String)>);

impl Keys {
    fn of(&self, key: &str) -> Option<u64> {
        let mut keys = self.0.iter();
        keys.find_map(|(line, found)| (found == key).then_some(*line))
    }
}

/// The keys of a definition and the lines they are on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Lines {
    top: Keys,
    assets: Vec<Keys>,
}

impl Lines {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// When the text is not a mapping in YAML.
    pub(super) fn read(text: &str) -> Result<Self, serde_saphyr::Error> {
        serde_saphyr::from_str(text)
    }

    /// The line of a key; of one that an asset lacks, where the asset begins.
    pub(super) fn of(&self, place: Place) -> Option<u64> {
        match place {
            Place::Key(key) => self.top.of(key),
            Place::Asset(index, key) => {
                let keys = self.assets.get(index)?;
                let first = || keys.0.first().map(|(line, _)| *line);
                keys.of(key)
                    .or_else(first)
                    .or_else(|| self.top.of("assets"))
            }
        }
    }

    /// Whether there is such a key.
    pub(super) fn has(&self, place: Place) -> bool {
        match place {
            Place::Key(key) => self.top.of(key).is_some(),
            Place::Asset(index, key) => {
                let keys = self.assets.get(index);
                keys.is_some_and(|keys| keys.of(key).is_some())
            }
        }
    }

    /// The keys that are none of these.
    pub(super) fn other_than(&self, top: &[&str], asset: &[&str]) -> Vec<(u64, String)> {
        let of = |keys: &Keys, known: &[&str]| -> Vec<(u64, String)> {
            let unknown = keys.0.iter().filter(|(_, key)| !known.contains(&&**key));
            unknown.cloned().collect()
        };
        let mut unknown = of(&self.top, top);
        unknown.extend(self.assets.iter().flat_map(|keys| of(keys, asset)));
        unknown
    }
}

impl<'de> Deserialize<'de> for Lines {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Top;
        impl<'de> Visitor<'de> for Top {
            type Value = Lines;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mapping of keys to values")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Lines, A::Error> {
                let mut lines = Lines::default();
                while let Some(key) = map.next_key::<Spanned<String>>()? {
                    if key.value == "assets" {
                        lines.assets = map.next_value::<Assets>()?.0;
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                    lines.top.0.push((key.referenced.line(), key.value));
                }
                Ok(lines)
            }
        }
        deserializer.deserialize_map(Top)
    }
}

/// The keys of a list of mappings; what is none has no keys, and is refused elsewhere.
#[derive(Default)]
struct Assets(Vec<Keys>);

impl<'de> Deserialize<'de> for Assets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Assets;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of assets")
            }

            fn visit_unit<E>(self) -> Result<Assets, E> {
                Ok(Assets::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Assets, A::Error> {
                let mut assets = Assets::default();
                while let Some(keys) = seq.next_element::<Keys>()? {
                    assets.0.push(keys);
                }
                Ok(assets)
            }
        }
        deserializer.deserialize_any(List)
    }
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Mapping;
        impl<'de> Visitor<'de> for Mapping {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an asset, which has the keys id and src")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Keys::default();
                while let Some(key) = map.next_key::<Spanned<String>>()? {
                    map.next_value::<IgnoredAny>()?;
                    keys.0.push((key.referenced.line(), key.value));
                }
                Ok(keys)
            }
        }
        deserializer.deserialize_map(Mapping)
    }
}
