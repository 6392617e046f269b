//! The superset entry: one shape that every Musher tool reads as its own.
//!
//! ```text
//!                        Python, TypeScript, mush     musher-cli
//! the list of files      manifest.layers              layers
//! a file's size          sizeBytes                    size
//! a manifest's life      ttlSeconds                   ttl
//! ```
//!
//! Each tool reads one side of each line and ignores the other, but takes the absence of its own for
//! an empty bundle (musher-cli: for ever), or crashes on `null` (Python). So both are always there,
//! numbers are integer literals, ids are strings (empty if unknown), `sourceType` and `state` are
//! among the two values each that Python knows, and dates end in `Z` with six digits.
//!
//! No value of a ref's `expiresAt` suits both Python, which crashes on a string, and the Go tools,
//! which do not understand a number. The number loses least: the Go tools then ask the registry.
//!
//! Refused paths are written too: the table, and with it every inode number, is the same when the
//! entry is read back.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Read, Write};

use jiff::Timestamp;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use super::{MANIFEST_TTL, REF_TTL};
use crate::digest::Digest;
use crate::manifest::{Document, Info, Layer, Manifest, State};
use crate::reference::{Version, VersionRef};

/// The `sourceType` of what does not tell its own.
const SOURCE_TYPE: &str = "registry";
const SOURCE_TYPES: [&str; 2] = [SOURCE_TYPE, "console"];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Head<'a> {
    bundle_id: &'a str,
    version_id: &'a str,
    namespace: &'a str,
    slug: &'a str,
    r#ref: String,
    version: &'a str,
    name: &'a str,
    description: Option<&'a str>,
    source_type: &'a str,
    oci_ref: Option<&'a str>,
    oci_digest: Option<&'a str>,
    state: &'a str,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    #[serde(borrow)]
    asset_id: Cow<'a, str>,
    #[serde(borrow)]
    logical_path: Cow<'a, str>,
    #[serde(borrow)]
    asset_type: Cow<'a, str>,
    #[serde(borrow)]
    content_sha256: Cow<'a, str>,
    size_bytes: u64,
    size: u64,
    #[serde(borrow)]
    media_type: Option<Cow<'a, str>>,
}

/// Writes the entry of `manifest`, one file a line. Nothing is collected: a manifest may have more
/// than a hundred thousand files.
pub(super) fn write_manifest(mut out: impl Write, manifest: &Manifest) -> io::Result<()> {
    let VersionRef { bundle, version } = manifest.id();
    let info = manifest.info();
    let slug = bundle.slug.as_str();
    let head = Head {
        bundle_id: &info.bundle_id,
        version_id: &info.version_id,
        namespace: bundle.namespace.as_str(),
        slug,
        r#ref: bundle.to_string(),
        version: version.as_str(),
        // The Go tools show it.
        name: if info.name.is_empty() {
            slug
        } else {
            &info.name
        },
        description: info.description.as_deref(),
        source_type: SOURCE_TYPES
            .into_iter()
            .find(|known| *known == info.source_type)
            .unwrap_or(SOURCE_TYPE),
        oci_ref: info.oci_ref.as_deref(),
        oci_digest: info.oci_digest.as_deref(),
        state: info.state.as_str(),
    };
    let head = serde_json::to_string_pretty(&head)?;
    let open = head.strip_suffix("\n}").unwrap_or(&head);
    write!(out, "{open},\n  \"manifest\": {{\n    \"layers\": ")?;
    write_layers(&mut out, manifest, "    ")?;
    write!(out, "\n  }},\n  \"layers\": ")?;
    write_layers(&mut out, manifest, "  ")?;
    out.write_all(b"\n}\n")
}

fn write_layers(mut out: impl Write, manifest: &Manifest, indent: &str) -> io::Result<()> {
    let mut separator = "[\n";
    for entry in manifest.entries().filter(|entry| !entry.is_dir()) {
        write!(out, "{separator}{indent}  ")?;
        separator = ",\n";
        let row = Row {
            asset_id: entry.asset_id().into(),
            logical_path: entry.path().into(),
            asset_type: entry.asset_type().into(),
            content_sha256: entry.digest().hex().into(),
            size_bytes: entry.size(),
            size: entry.size(),
            media_type: entry.media_type().map(Cow::from),
        };
        serde_json::to_writer(&mut out, &row)?;
    }
    match separator {
        "[\n" => out.write_all(b"[]"),
        _ => write!(out, "\n{indent}]"),
    }
}

/// Writes the sidecar of a manifest that was fetched at `fetched_at`.
pub(super) fn write_sidecar(
    out: impl Write,
    manifest: &Manifest,
    fetched_at: Timestamp,
) -> io::Result<()> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Sidecar<'a> {
        fetched_at: String,
        ttl_seconds: u64,
        ttl: u64,
        oci_digest: Option<&'a str>,
    }
    let sidecar = Sidecar {
        fetched_at: zulu(fetched_at),
        ttl_seconds: MANIFEST_TTL.as_secs(),
        ttl: MANIFEST_TTL.as_secs(),
        oci_digest: manifest.info().oci_digest.as_deref(),
    };
    write_pretty(out, &sidecar)
}

/// Writes the ref that stands for `version` since `fetched_at`.
pub(super) fn write_ref(
    out: impl Write,
    version: &Version,
    fetched_at: Timestamp,
) -> io::Result<()> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Ref<'a> {
        version: &'a str,
        fetched_at: String,
        cached_at: String,
        ttl_seconds: u64,
        expires_at: f64,
    }
    let fetched = zulu(fetched_at);
    // Exact: microseconds since 1970 stay below 2^53 until the year 2255.
    #[allow(clippy::cast_precision_loss)]
    let epoch = fetched_at.as_microsecond() as f64 / 1e6;
    let entry = Ref {
        version: version.as_str(),
        fetched_at: fetched.clone(),
        cached_at: fetched,
        ttl_seconds: REF_TTL.as_secs(),
        expires_at: epoch + REF_TTL.as_secs_f64(),
    };
    write_pretty(out, &entry)
}

fn write_pretty(mut out: impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut out, value)?;
    out.write_all(b"\n")
}

/// A date as all tools can read it.
fn zulu(at: Timestamp) -> String {
    format!("{at:.6}")
}

/// Reads an entry that keeps every rule of the superset; `None` for any other, however readable.
///
/// The second list is compared with the first while it is read, not kept.
pub(super) fn read_superset(json: &[u8], expected: &VersionRef) -> Option<Manifest> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let document = reader.deserialize_map(SupersetVisitor).ok()?;
    reader.end().ok()?;
    document.into_manifest(expected.clone()).ok()
}

struct SupersetVisitor;

impl<'de> Visitor<'de> for SupersetVisitor {
    type Value = Document;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a superset entry")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Document, A::Error> {
        let mut text: [Option<String>; 9] = Default::default();
        const REQUIRED: [&str; 9] = [
            "bundleId",
            "versionId",
            "namespace",
            "slug",
            "version",
            "name",
            "sourceType",
            "state",
            "ref",
        ];
        let mut info = Info::default();
        let mut layers: Option<Vec<Layer>> = None;
        let (mut nested, mut top) = (false, false);
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            match &*key {
                "description" => info.description = map.next_value()?,
                "ociRef" => info.oci_ref = some_text(map.next_value()?),
                "ociDigest" => info.oci_digest = some_text(map.next_value()?),
                "manifest" => {
                    map.next_value_seed(NestedLayers(&mut layers))?;
                    nested = true;
                }
                "layers" => {
                    map.next_value_seed(Layers(&mut layers))?;
                    top = true;
                }
                key => match REQUIRED.iter().position(|required| *required == key) {
                    Some(index) => text[index] = Some(map.next_value()?),
                    None => _ = map.next_value::<IgnoredAny>()?,
                },
            }
        }
        let missing = || de::Error::custom("not a superset entry");
        if !nested || !top || text.iter().any(Option::is_none) {
            return Err(missing());
        }
        let [
            bundle_id,
            version_id,
            namespace,
            slug,
            version,
            name,
            source_type,
            state,
            r#ref,
        ] = text.map(Option::unwrap_or_default);
        if r#ref != format!("{namespace}/{slug}") || !SOURCE_TYPES.contains(&&*source_type) {
            return Err(missing());
        }
        info.state = [State::Published, State::Yanked]
            .into_iter()
            .find(|known| known.as_str() == state)
            .ok_or_else(missing)?;
        Ok(Document {
            namespace: Some(namespace),
            slug: Some(slug),
            version: Some(version),
            info: Info {
                bundle_id,
                version_id,
                name,
                source_type,
                ..info
            },
            layers,
        })
    }
}

fn some_text(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

/// The object that holds the list of files for everyone but musher-cli.
struct NestedLayers<'a>(&'a mut Option<Vec<Layer>>);

impl<'de> DeserializeSeed<'de> for NestedLayers<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for NestedLayers<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with layers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut found = false;
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            if key == "layers" {
                map.next_value_seed(Layers(&mut *self.0))?;
                found = true;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        if found {
            Ok(())
        } else {
            Err(de::Error::missing_field("layers"))
        }
    }
}

/// A list of files: the first one is kept, any further one must be the same.
struct Layers<'a>(&'a mut Option<Vec<Layer>>);

impl<'de> DeserializeSeed<'de> for Layers<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Layers<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of files")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some(known) = self.0 else {
            let mut layers = Vec::new();
            while let Some(row) = list.next_element::<Row<'_>>()? {
                layers.push(row.into_layer().map_err(de::Error::custom)?);
            }
            *self.0 = Some(layers);
            return Ok(());
        };
        let mut known = known.iter();
        while let Some(row) = list.next_element::<Row<'_>>()? {
            if !known.next().is_some_and(|layer| row.is(layer)) {
                return Err(de::Error::custom("the two lists differ"));
            }
        }
        match known.next() {
            None => Ok(()),
            Some(_) => Err(de::Error::custom("the two lists differ")),
        }
    }
}

impl Row<'_> {
    fn strict_digest(&self) -> Option<Digest> {
        let lower = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (self.content_sha256.len() == 64 && self.content_sha256.bytes().all(lower))
            .then(|| self.content_sha256.parse().ok())?
    }

    fn into_layer(self) -> Result<Layer, &'static str> {
        let digest = self.strict_digest().ok_or("not 64 lower-case hex digits")?;
        if self.size != self.size_bytes {
            return Err("the two sizes differ");
        }
        Ok(Layer {
            path: self.logical_path.into_owned(),
            digest,
            size: Some(self.size),
            asset_type: self.asset_type.into_owned(),
            asset_id: self.asset_id.into_owned(),
            media_type: self.media_type.map(Cow::into_owned),
        })
    }

    fn is(&self, layer: &Layer) -> bool {
        self.strict_digest() == Some(layer.digest)
            && Some(self.size) == layer.size
            && self.size == self.size_bytes
            && self.logical_path == *layer.path
            && self.asset_id == *layer.asset_id
            && self.asset_type == *layer.asset_type
            && self.media_type.as_deref() == layer.media_type.as_deref()
    }
}

/// The `state` of an entry in any dialect, read no further than that: an entry may be large, and a
/// listing wants one word of each.
///
/// `Some(None)` for an entry that has none (musher-cli writes none), `None` for one that is no JSON
/// object up to there.
pub(super) fn read_state(entry: impl Read) -> Option<Option<String>> {
    let mut state = None;
    let mut reader = serde_json::Deserializer::from_reader(entry);
    match (reader.deserialize_map(StateVisitor(&mut state)), state) {
        // The visitor may leave the object half read, which counts as an error.
        (_, Some(state)) => Some(state),
        (Ok(()), None) => Some(None),
        (Err(_), None) => None,
    }
}

/// Outer `Option`: whether the key is there. Inner: whether its value is not null.
struct StateVisitor<'a>(&'a mut Option<Option<String>>);

impl<'de> Visitor<'de> for StateVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an entry")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "state" {
                *self.0 = Some(map.next_value()?);
                return Ok(());
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}
