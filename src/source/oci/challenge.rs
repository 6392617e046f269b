//! What a WWW-Authenticate header asks for: schemes with parameters, as RFC 9110 has them.
//!
//! The header is a stranger's text, so reading it never fails: what makes no sense is left out.

/// Longest header that is looked into.
const MAX_CHALLENGE: usize = 8 << 10;

/// One challenge of a WWW-Authenticate header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    /// In lower case.
    pub scheme: String,
    /// Names in lower case.
    pub parameters: Vec<(String, String)>,
}

impl Challenge {
    /// A parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }
}

/// Reads the challenges of a header, whatever is in it: what cannot be understood is left out.
pub fn parse_challenges(header: &str) -> Vec<Challenge> {
    let mut challenges: Vec<Challenge> = Vec::new();
    let mut rest = header;
    if rest.len() > MAX_CHALLENGE {
        return challenges;
    }
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let word_end = rest.find(|c| !is_token(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(word_end);
        let Some(next) = rest.chars().next() else {
            return challenges;
        };
        if word.is_empty() {
            // Nothing that can stand here.
            rest = &rest[next.len_utf8()..];
            continue;
        }
        let value = after.trim_start_matches([' ', '\t']).strip_prefix('=');
        match (value, challenges.last_mut()) {
            (Some(value), Some(challenge)) => {
                let (value, after) = parse_value(value.trim_start_matches([' ', '\t']));
                challenge
                    .parameters
                    .push((word.to_ascii_lowercase(), value));
                rest = after;
            }
            (Some(value), None) => rest = value,
            (None, _) => {
                challenges.push(Challenge {
                    scheme: word.to_ascii_lowercase(),
                    parameters: Vec::new(),
                });
                rest = after;
            }
        }
    }
}

/// A token or quoted string at the start of `text`, and what follows it.
fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text
            .find(|c: char| c == ',' || c.is_whitespace())
            .unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(header: &str) -> Challenge {
        parse_challenges(header).remove(0)
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let bearer = one(
            r#"Bearer realm="https://auth.example/token?a=b",service="reg \"x\"",scope="repository:a/b:pull,push""#,
        );
        assert_eq!(bearer.scheme, "bearer");
        assert_eq!(bearer.get("realm"), Some("https://auth.example/token?a=b"));
        assert_eq!(bearer.get("service"), Some("reg \"x\""));
        assert_eq!(bearer.get("scope"), Some("repository:a/b:pull,push"));
        assert_eq!(
            one("BEARER Realm = https://a/t , service=x").get("realm"),
            Some("https://a/t")
        );
        let several =
            parse_challenges(r#"Negotiate, Basic realm="r", Bearer realm="https://a/t",error=x"#);
        let schemes: Vec<_> = several.iter().map(|c| c.scheme.as_str()).collect();
        assert_eq!(schemes, ["negotiate", "basic", "bearer"]);
        assert_eq!(several[2].get("error"), Some("x"));
        assert_eq!(
            one("Bearer realm=\"https://a").get("realm"),
            Some("https://a")
        );
        assert!(parse_challenges("").is_empty());
        assert!(parse_challenges(",,, \"").is_empty());
    }

    proptest! {
        #[test]
        fn no_header_is_too_strange(header in ".{0,200}") {
            for challenge in parse_challenges(&header) {
                prop_assert!(!challenge.scheme.is_empty());
            }
        }

        #[test]
        fn what_is_quoted_comes_out_as_it_went_in(value in "[ -~]{0,40}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let challenge = one(&format!("Bearer a=\"{quoted}\", b=c"));
            prop_assert_eq!(challenge.get("a"), Some(value.as_str()));
            prop_assert_eq!(challenge.get("b"), Some("c"));
        }
    }
}
