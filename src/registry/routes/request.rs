//! A request as the answering side sees it: who asks, for which version, which part, which page.

use std::ops::Range;

use base64::alphabet;
use base64::engine::{DecodePaddingMode, Engine as _, GeneralPurpose, GeneralPurposeConfig};
use http::{HeaderMap, Uri, header};
use serde_json::{Value, json};

use super::Problem;
use crate::reference::Selector;
use crate::registry::Token;
use crate::registry::storage::Release;

/// As browsers and curl send it, or without the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How many items a page has unless the caller says otherwise.
const PAGE: usize = 20;
/// The most items a page has; more are not refused but cut.
const MAX_PAGE: usize = 100;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::registry) enum Caller {
    /// Without a key, or where no key could be right.
    Anonymous,
    /// With a key that is none of ours.
    Rejected,
    /// With a token.
    Known,
}

impl Caller {
    fn of(headers: &HeaderMap, tokens: &[Token]) -> Self {
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            return Self::Anonymous;
        };
        if tokens.is_empty() {
            return Self::Anonymous;
        }
        match value.to_str().ok().and_then(presented) {
            // Container tools without a login send `:` once they were asked for Basic.
            Some(secret) if secret.is_empty() => Self::Anonymous,
            Some(secret) if tokens.contains(&Token::new(&secret)) => Self::Known,
            _ => Self::Rejected,
        }
    }
}

/// The secret in `Bearer SECRET`, or in `Basic` with any user name.
pub(super) fn presented(authorization: &str) -> Option<String> {
    let (scheme, rest) = authorization.split_once(' ')?;
    let rest = rest.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.to_owned());
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = String::from_utf8(BASE64.decode(rest).ok()?).ok()?;
    Some(decoded.split_once(':')?.1.to_owned())
}

/// A request as the answering side sees it.
pub(in crate::registry) struct Request {
    pub(in crate::registry) caller: Caller,
    pub(super) path: String,
    query: Vec<(String, String)>,
    range: Option<String>,
}

impl Request {
    pub(super) fn new(uri: &Uri, headers: &HeaderMap, tokens: &[Token]) -> Self {
        let query = uri.query().unwrap_or_default();
        Self {
            caller: Caller::of(headers, tokens),
            path: uri.path().to_owned(),
            query: url::form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
            range: headers
                .get(header::RANGE)
                .and_then(|range| range.to_str().ok())
                .map(str::to_owned),
        }
    }

    /// The first value of a query parameter; an empty one counts as absent.
    pub(in crate::registry) fn query(&self, name: &str) -> Option<&str> {
        self.query
            .iter()
            .find(|(key, value)| key == name && !value.is_empty())
            .map(|(_, value)| value.as_str())
    }

    /// Whether the caller may know that the version exists.
    pub(in crate::registry) fn may_see(&self, release: &Release) -> bool {
        release.is_public() || self.caller == Caller::Known
    }

    /// The range of a body of `len` bytes that is asked for: `None` for all of it, `Some(None)` if
    /// it cannot be satisfied. Several ranges count as none, which HTTP allows.
    pub(in crate::registry) fn range(&self, len: usize) -> Option<Option<Range<usize>>> {
        let spec = self.range.as_deref()?.strip_prefix("bytes=")?;
        let (from, to) = spec.split_once('-')?;
        let number = |text: &str| text.trim().parse::<usize>().ok();
        let (start, end) = match (number(from), number(to)) {
            (Some(from), Some(to)) if from > to => return None,
            (Some(from), Some(to)) => (from, to.saturating_add(1).min(len)),
            (Some(from), None) if to.trim().is_empty() => (from, len),
            (None, Some(last)) if from.trim().is_empty() => (len - last.min(len), len),
            _ => return None,
        };
        Some((start < end).then_some(start..end))
    }

    /// What `version=` and `digest=` select; `latest` without both.
    pub(super) fn selector(&self) -> Result<Selector, Problem> {
        let digest = match self.query("digest") {
            None => None,
            Some(text) => Some(
                text.parse()
                    .map_err(|error| Problem::invalid(format!("digest: {error}")))?,
            ),
        };
        match (self.query("version"), digest) {
            (_, Some(digest)) => Ok(Selector::Digest(digest)),
            (None, None) => Ok(Selector::Latest),
            (Some(version), None) => version
                .parse()
                .map_err(|error| Problem::invalid(format!("version: {error}"))),
        }
    }

    /// Cuts one page out of `keys`. The cursor is the last key of the page before; `item` may drop
    /// a key that the caller must not see.
    pub(super) fn page<K: ToString>(
        &self,
        keys: &[K],
        mut item: impl FnMut(&K) -> Result<Option<Value>, Problem>,
    ) -> Result<Value, Problem> {
        let limit = match self.query("limit").map(str::parse::<usize>) {
            None => PAGE,
            Some(Ok(limit)) if limit > 0 => limit.min(MAX_PAGE),
            Some(_) => return Err(Problem::invalid("limit: not a positive number")),
        };
        let start = match self.query("cursor") {
            None => 0,
            Some(cursor) => keys
                .iter()
                .position(|key| cursor_of(key) == cursor)
                .map(|position| position + 1)
                .ok_or_else(|| Problem::bad_request("cursor: not one of this list"))?,
        };
        let mut data = Vec::new();
        let mut last = None;
        let mut next = None;
        for key in &keys[start..] {
            let Some(value) = item(key)? else { continue };
            if data.len() == limit {
                next = last;
                break;
            }
            data.push(value);
            last = Some(cursor_of(key));
        }
        Ok(json!({
            "data": data,
            "meta": { "hasMore": next.is_some(), "nextCursor": next },
        }))
    }
}

/// Opaque: hex, so that no client has to escape it.
fn cursor_of(key: &impl ToString) -> String {
    key.to_string()
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
