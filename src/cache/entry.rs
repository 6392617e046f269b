//! Cached answers with their age: manifests and refs, as any tool may have dated them.
//!
//! | | Python SDK | TypeScript SDK | Go CLIs |
//! |---|---|---|---|
//! | a manifest's sidecar | `fetchedAt`, `ttlSeconds` | the same | `fetchedAt`, `ttl` |
//! | a ref | `cachedAt`, `expiresAt` as epoch seconds | `fetchedAt`, `ttlSeconds` | `cachedAt`, `expiresAt` as a date |
//!
//! Reading is tolerant: a date that cannot be understood makes an entry stale, and nothing makes it
//! fresher than it says. A date more than five minutes ahead of the clock is a clock that jumped:
//! stale.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{MANIFEST_TTL, REF_TTL};
use crate::manifest::Manifest;
use crate::reference::Version;

/// How far a date may be ahead of the clock, for clocks that differ a little.
const SKEW: Duration = Duration::from_secs(5 * 60);

/// The longest life that is computed with; what lives longer lives this long.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Numbers above this are milliseconds since 1970, others seconds (until the year 5138).
const MILLISECONDS_FROM: f64 = 1e11;

/// Go's zero time, 0001-01-01T00:00:00Z: "never" in the refs of locally packed bundles.
const GO_ZERO_SECONDS: i64 = -62_135_596_800;

/// A manifest from the cache. Its content is immutable whatever its age; its
/// [`State`](crate::manifest::State) is as old as the entry.
#[derive(Debug)]
pub struct CachedManifest {
    /// The manifest.
    pub manifest: Manifest,
    /// When a registry last confirmed it; `None` if nobody noted that, and the entry is stale.
    pub fetched_at: Option<Timestamp>,
    /// How long it is fresh from then on; `None` for ever.
    pub ttl: Option<Duration>,
    /// Whether the entry is as this program writes it, so that every other tool can read it.
    /// Otherwise the next refresh should write it again.
    pub is_superset: bool,
}

impl CachedManifest {
    /// Whether the entry's state may be relied on without asking again.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        !self.remaining(now).is_zero()
    }

    /// How long the entry stays fresh: zero if it is stale, [`Duration::MAX`] if it never expires.
    pub fn remaining(&self, now: Timestamp) -> Duration {
        match (self.ttl, self.fetched_at) {
            (None, _) => Duration::MAX,
            (Some(ttl), Some(fetched_at)) => {
                age(fetched_at, now).map_or(Duration::ZERO, |age| ttl.saturating_sub(age))
            }
            (Some(_), None) => Duration::ZERO,
        }
    }
}

/// Which version a moving name stood for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedRef {
    /// The version.
    pub version: Version,
    /// When a registry said so, where the entry tells.
    pub fetched_at: Option<Timestamp>,
    /// Until when the answer is fresh; `None` for ever.
    pub expires_at: Option<Timestamp>,
}

impl CachedRef {
    /// Whether the answer may be given without asking again.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        let Some(expires_at) = self.expires_at else {
            return true;
        };
        now < expires_at && self.fetched_at.is_none_or(|at| age(at, now).is_some())
    }

    /// Reads a ref in any dialect; `None` if it names no version.
    pub(super) fn parse(json: &[u8], is_local: bool) -> Option<Self> {
        let raw = object(json)?;
        let version = raw.get("version")?.as_str()?.parse().ok()?;
        let fetched_at = ["fetchedAt", "cachedAt"]
            .iter()
            .find_map(|key| date(raw.get(*key)?));
        let expires_at = match raw.get("expiresAt").and_then(date) {
            Some(zero) if is_local && zero.as_second() == GO_ZERO_SECONDS => None,
            Some(date) => Some(date),
            None => {
                let ttl = raw.get("ttlSeconds").and_then(Value::as_f64);
                let ttl = ttl.map_or(REF_TTL, lifetime);
                let expiry = fetched_at.and_then(|at| at.checked_add(ttl).ok());
                Some(expiry.unwrap_or(Timestamp::MIN))
            }
        };
        Some(Self {
            version,
            fetched_at,
            expires_at,
        })
    }

    /// A ref that says nothing about its age: stale.
    pub(super) fn undated(version: Version) -> Self {
        Self {
            version,
            fetched_at: None,
            expires_at: Some(Timestamp::MIN),
        }
    }
}

/// What a sidecar says about the manifest beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Age {
    pub(super) fetched_at: Option<Timestamp>,
    pub(super) ttl: Option<Duration>,
    /// Whether every tool reads it alike: both spellings of the life, in integers.
    pub(super) is_superset: bool,
}

impl Age {
    /// Nothing is known: stale.
    pub(super) const UNKNOWN: Self = Self {
        fetched_at: None,
        ttl: Some(MANIFEST_TTL),
        is_superset: false,
    };

    /// Reads a sidecar in any dialect. A damaged one is like none.
    pub(super) fn parse(json: &[u8], is_local: bool) -> Self {
        let Some(raw) = object(json) else {
            return Self::UNKNOWN;
        };
        let seconds = ["ttlSeconds", "ttl"]
            .iter()
            .find_map(|key| raw.get(*key)?.as_f64());
        let ttl = match seconds {
            Some(seconds) if seconds <= 0.0 && is_local => None,
            Some(seconds) => Some(lifetime(seconds)),
            None => Some(MANIFEST_TTL),
        };
        let whole = |key: &str| raw.get(key).and_then(Value::as_u64);
        let zulu = |text: &str| text.ends_with('Z') && text.parse::<Timestamp>().is_ok();
        Self {
            fetched_at: raw.get("fetchedAt").and_then(date),
            ttl,
            is_superset: whole("ttl").is_some_and(|ttl| ttl > 0)
                && whole("ttl") == whole("ttlSeconds")
                && raw
                    .get("fetchedAt")
                    .and_then(Value::as_str)
                    .is_some_and(zulu),
        }
    }
}

/// How old something is; `None` if it claims to be from the future.
pub(super) fn age(at: Timestamp, now: Timestamp) -> Option<Duration> {
    let elapsed = now.duration_since(at);
    if elapsed.is_negative() {
        (elapsed.unsigned_abs() <= SKEW).then_some(Duration::ZERO)
    } else {
        Some(elapsed.unsigned_abs())
    }
}

/// A JSON object; a byte order mark is skipped. Of a key that is there twice, the last counts, as
/// in every tool.
fn object(json: &[u8]) -> Option<Map<String, Value>> {
    let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
    serde_json::from_slice(json).ok()
}

/// A number of seconds as a life: none if it is negative, and not absurdly long.
fn lifetime(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.clamp(0.0, LONGEST.as_secs_f64())).unwrap_or_default()
}

/// A date as some tool wrote it: RFC 3339 with any precision and offset, without an offset (UTC),
/// or a number since 1970.
fn date(value: &Value) -> Option<Timestamp> {
    match value {
        Value::String(text) => {
            let text = at_most_nanoseconds(text.trim());
            text.parse::<Timestamp>().ok().or_else(|| {
                let local: jiff::civil::DateTime = text.parse().ok()?;
                local
                    .to_zoned(jiff::tz::TimeZone::UTC)
                    .ok()
                    .map(|zoned| zoned.timestamp())
            })
        }
        Value::Number(number) => {
            let number = number.as_f64()?;
            let seconds = if number.abs() > MILLISECONDS_FROM {
                number / 1000.0
            } else {
                number
            };
            // A cast from float saturates, and what is out of range then is refused.
            #[allow(clippy::cast_possible_truncation)]
            let microseconds = (seconds * 1e6) as i64;
            Timestamp::from_microsecond(microseconds).ok()
        }
        _ => None,
    }
}

/// Cuts a fraction of a second to the nine digits that parse.
fn at_most_nanoseconds(text: &str) -> std::borrow::Cow<'_, str> {
    let Some((whole, fraction)) = text.split_once('.') else {
        return text.into();
    };
    let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
    if digits <= 9 {
        return text.into();
    }
    format!("{whole}.{}{}", &fraction[..9], &fraction[digits..]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn dates_of_every_tool_are_understood() {
        let expected = at("2026-11-20T11:29:40.974994Z");
        for json in [
            r#""2026-11-20T11:29:40.974994Z""#,
            r#""2026-11-20T11:29:40.974994+00:00""#,
            r#""2026-11-20T12:29:40.974994+01:00""#,
            r#""2026-11-20T11:29:40.974994000000Z""#,
            r#""2026-11-20T11:29:40.974994""#,
            r#""2026-11-20 11:29:40.974994""#,
            "1795174180.974994",
            "1795174180974.994",
        ] {
            assert_eq!(
                date(&serde_json::from_str(json).unwrap()),
                Some(expected),
                "{json}"
            );
        }
    }

    #[test]
    fn what_is_no_date_has_none() {
        for json in [
            "null",
            "true",
            "[]",
            r#""""#,
            r#""yesterday""#,
            r#""Fri, 20 Nov 2026 11:29:40 GMT""#,
            r#""2026-13-20T11:29:40Z""#,
            "1e300",
            "-1e300",
        ] {
            assert_eq!(date(&serde_json::from_str(json).unwrap()), None, "{json}");
        }
    }

    #[test]
    fn a_life_is_read_by_either_name_and_never_grows_by_damage() {
        let ttl = |json: &str, is_local| Age::parse(json.as_bytes(), is_local).ttl;
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        assert_eq!(ttl(r#"{"ttlSeconds": 60, "ttl": 5}"#, false), seconds(60));
        assert_eq!(ttl(r#"{"ttlSeconds": null, "ttl": 5}"#, false), seconds(5));
        assert_eq!(ttl(r#"{"ttlSeconds": "60"}"#, false), Some(MANIFEST_TTL));
        assert_eq!(ttl(r#"{"ttl": 60.0}"#, false), seconds(60));
        assert_eq!(ttl("{}", false), Some(MANIFEST_TTL));
        assert_eq!(ttl(r#"{"ttl": 0}"#, false), seconds(0));
        assert_eq!(ttl(r#"{"ttl": -5}"#, false), seconds(0));
        assert_eq!(ttl(r#"{"ttl": 0}"#, true), None);
        assert_eq!(ttl(r#"{"ttl": 1e300}"#, false), Some(LONGEST));
    }

    #[test]
    fn a_ref_is_fresh_by_the_first_rule_that_applies() {
        let now = at("2026-11-20T12:00:00Z");
        let fresh = |json: &str, is_local| {
            CachedRef::parse(json.as_bytes(), is_local)
                .unwrap()
                .is_fresh(now)
        };
        let now_epoch = now.as_second();
        for (body, expected) in [
            (format!(r#""expiresAt": {}.5"#, now_epoch), true),
            (format!(r#""expiresAt": {}.5"#, now_epoch - 1), false),
            (format!(r#""expiresAt": {}"#, now_epoch * 1000 + 10), true),
            (r#""expiresAt": "2026-11-20T14:00:01+02:00""#.into(), true),
            (r#""expiresAt": "2026-11-20T11:59:59Z""#.into(), false),
            (r#""expiresAt": "0001-01-01T00:00:00Z""#.into(), false),
            (r#""fetchedAt": "2026-11-20T11:56:00Z""#.into(), true),
            (r#""fetchedAt": "2026-11-20T11:54:59Z""#.into(), false),
            (
                r#""cachedAt": "2026-11-20T11:59:00Z", "ttlSeconds": 30"#.into(),
                false,
            ),
            (
                r#""cachedAt": "2026-11-20T11:59:00Z", "ttlSeconds": 90"#.into(),
                true,
            ),
            (
                r#""expiresAt": null, "fetchedAt": "2026-11-20T11:59:00Z""#.into(),
                true,
            ),
            (r#""expiresAt": "soon""#.into(), false),
            (r#""ttlSeconds": 300"#.into(), false),
            // A clock that jumped: five minutes are forgiven, not six.
            (r#""fetchedAt": "2026-11-20T12:04:00Z""#.into(), true),
            (r#""fetchedAt": "2026-11-20T12:06:00Z""#.into(), false),
            (
                r#""cachedAt": "2026-11-20T12:06:00Z", "expiresAt": "2026-11-20T12:11:00Z""#.into(),
                false,
            ),
        ] {
            let json = format!(r#"{{"version": "1.2.0", {body}}}"#);
            assert_eq!(fresh(&json, false), expected, "{json}");
        }
        let never = r#"{"version": "1.2.0", "expiresAt": "0001-01-01T00:00:00Z"}"#;
        assert!(fresh(never, true));
    }

    #[test]
    fn a_ref_without_a_version_is_none() {
        for json in [
            "",
            "null",
            "[]",
            "7",
            "{",
            "{}",
            r#"{"version": null}"#,
            r#"{"version": ""}"#,
            r#"{"version": "../../etc"}"#,
            r#"{"version": "^1.0"}"#,
        ] {
            assert_eq!(CachedRef::parse(json.as_bytes(), false), None, "{json}");
        }
    }
}
