//! What a refusal says, in one line: problem details (RFC 9457) where the server sends them.

use http::header::{CONTENT_TYPE, HeaderMap};
use http::{HeaderName, StatusCode};
use serde::Deserialize;

/// Longest text of a server that is passed on, in characters.
const LONGEST: usize = 200;

/// The members that are of use. Every one may be missing or of another type, since refusals also
/// come from whatever stands between us and the registry.
#[derive(Deserialize, Default)]
struct Problem {
    #[serde(default, rename = "type", deserialize_with = "text")]
    kind: Option<String>,
    #[serde(default, deserialize_with = "text")]
    title: Option<String>,
    #[serde(default, deserialize_with = "text")]
    detail: Option<String>,
    /// What the Distribution API has instead.
    #[serde(default, deserialize_with = "first_error")]
    errors: Option<String>,
}

/// `CODE: message` of the first of a Distribution API's errors; anything else counts as missing.
fn first_error<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<String>, D::Error> {
    let errors = serde_json::Value::deserialize(deserializer)?;
    let said = |name: &str| errors.get(0)?.get(name)?.as_str();
    Ok(match (said("code"), said("message")) {
        (Some(code), Some(message)) if !message.is_empty() => Some(format!("{code}: {message}")),
        (Some(code), _) => Some(code.to_owned()),
        (None, _) => None,
    })
}

/// A non-empty string; anything else counts as missing.
fn text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let value = serde_json::Value::deserialize(deserializer)?;
    Ok(value
        .as_str()
        .map(str::trim)
        .filter(|text| !text.is_empty())
        .map(str::to_owned))
}

/// The printable start of `text`: it goes to logs and terminals, and its writer is not trusted.
pub(super) fn printable(text: &str) -> String {
    scrubbed_line(text, &|text| text)
}

/// As [`printable`], without secrets: they are taken out of the whole text before it is cut short,
/// since half a key is one too much.
fn scrubbed_line(text: &str, scrub: &dyn Fn(String) -> String) -> String {
    let line = text
        .chars()
        .map(|c| if c.is_whitespace() { ' ' } else { c })
        .filter(|c| !c.is_control())
        .collect();
    let line = scrub(line);
    let mut line: String = line.chars().take(LONGEST + 1).collect();
    if line.chars().count() > LONGEST {
        line.pop();
        line.push('…');
    }
    line.trim().to_owned()
}

/// Prefers `detail`, then `title`, then the status line; other bodies follow the status line.
pub fn summary(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> String {
    scrubbed(status, headers, body, |text| text)
}

/// As [`summary`], with everything that the server wrote passed through `scrub` when it has been
/// read, since JSON may spell a key in another way, and before it is cut short.
pub(super) fn scrubbed(
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    scrub: impl Fn(String) -> String,
) -> String {
    let printable = |text: &str| scrubbed_line(text, &scrub);
    let media_type = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_ascii_lowercase();
    let problem = if media_type.contains("json") {
        serde_json::from_slice(body).unwrap_or_default()
    } else {
        Problem::default()
    };
    // Hosts and paths of the type differ between deployments; the last segment is the name.
    let slug = problem
        .kind
        .as_deref()
        .and_then(|kind| kind.trim_end_matches('/').rsplit('/').next())
        .filter(|slug| *slug != "about:blank")
        .map(printable);
    let status_line = match (slug, status.canonical_reason()) {
        (Some(slug), _) => format!("{} {slug}", status.as_u16()),
        (None, Some(reason)) => format!("{} {reason}", status.as_u16()),
        (None, None) => status.as_u16().to_string(),
    };
    let said = match problem.detail.or(problem.title).or(problem.errors) {
        Some(said) => printable(&said),
        None if media_type.contains("json") || media_type.contains("html") => String::new(),
        None => printable(&String::from_utf8_lossy(body)),
    };
    let mut line = status_line;
    if !said.is_empty() {
        line = format!("{line}: {said}");
    }
    let trace = ["x-request-id", "x-trace-id"].into_iter().find_map(|name| {
        let value = headers.get(HeaderName::from_static(name))?;
        value.to_str().ok().filter(|id| id.len() <= 64)
    });
    match trace {
        Some(id) if status.is_server_error() => format!("{line} [request {}]", printable(id)),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(status: u16, media_type: &'static str, body: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, media_type.parse().unwrap());
        summary(
            StatusCode::from_u16(status).unwrap(),
            &headers,
            body.as_bytes(),
        )
    }

    #[test]
    fn the_detail_is_preferred_and_only_the_last_segment_of_the_type_counts() {
        let body = r#"{"type":"https://api.platform.musher.dev/errors/forbidden",
            "title":"Forbidden","detail":"requires 'read' scope","status":403}"#;
        let said = "403 forbidden: requires 'read' scope";
        assert_eq!(line(403, "application/problem+json", body), said);
        assert_eq!(line(403, "application/json; charset=utf-8", body), said);
    }

    #[test]
    fn the_first_error_of_an_oci_registry_is_what_it_says() {
        let body =
            r#"{"errors":[{"code":"DENIED","message":"not yours","detail":{}},{"code":"X"}]}"#;
        assert_eq!(
            line(403, "application/json", body),
            "403 Forbidden: DENIED: not yours"
        );
        for odd in [
            r#"{"errors":[]}"#,
            r#"{"errors":7}"#,
            r#"{"errors":[{"message":"x"}]}"#,
        ] {
            assert_eq!(line(403, "application/json", odd), "403 Forbidden", "{odd}");
        }
    }

    #[test]
    fn the_title_and_the_status_line_stand_in() {
        let title = r#"{"type":"about:blank","title":"No such thing","detail":null}"#;
        assert_eq!(
            line(404, "application/problem+json", title),
            "404 Not Found: No such thing"
        );
        for odd in [
            "{}",
            "[]",
            "7",
            "null",
            "{",
            r#"{"detail":{"a":1},"type":5}"#,
        ] {
            assert_eq!(line(404, "application/json", odd), "404 Not Found", "{odd}");
        }
    }

    #[test]
    fn other_bodies_are_cut_to_200_printable_characters() {
        let body = format!("\u{1b}[31mbad\r\ngateway\u{7} {}", "é".repeat(1000));
        let said = line(502, "text/plain", &body);
        assert!(
            said.starts_with("502 Bad Gateway: [31mbad  gateway é"),
            "{said}"
        );
        assert!(!said.chars().any(char::is_control));
        assert!(said.ends_with('…') && said.chars().count() < 230, "{said}");
        assert_eq!(
            line(502, "text/html", "<html>…"),
            "502 Bad Gateway",
            "markup says nothing to a user"
        );
    }
}
