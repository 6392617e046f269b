//! Settings as people write them: `4MiB`, `1m30s`, `yes`. The command line, the environment and the
//! file all accept the same.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use url::{Host, Url};

use super::THREADS;
use crate::paths;
use crate::reference::Namespace;

/// The longest and the shortest time that a request may be given.
const TIMEOUTS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);

/// A number of bytes: `0`, `65536`, `64K`, `64KiB`, `1.5 MB`. All units are powers of 1024, as in
/// what the Musher tools print.
///
/// # Errors
///
/// Says what is wrong, as all functions here.
pub fn size(text: &str) -> Result<u64, String> {
    let problem = || format!("`{text}` is not a size such as 0, 512K or 4MiB");
    let text = text.trim();
    let unit_at = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(problem()),
    };
    let number = number.trim();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    // Nine digits after the point are more than a byte of a GiB, and leave room to multiply.
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return Err(problem());
    }
    let whole: u64 = whole.parse().map_err(|_| problem())?;
    let parts: u64 = fraction.parse().map_err(|_| problem())?;
    let scale = 10u64.pow(u32::try_from(fraction.len()).map_err(|_| problem())?);
    whole
        .checked_mul(1 << shift)
        .and_then(|bytes| bytes.checked_add((parts << shift) / scale))
        .ok_or_else(problem)
}

/// Less is not what anybody means: a forgotten unit would empty the cache.
const LEAST_CACHE: u64 = 1 << 20;

/// How large the cache may become: a [`size`] of at least 1 MiB, or 0 for no limit.
pub fn cache_size(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes @ 1..LEAST_CACHE => Err(format!(
            "`{}` is only {bytes} bytes, and less than 1MiB is no cache; write the unit, such as 2GiB",
            text.trim()
        )),
        bytes => Ok(bytes),
    }
}

/// How long a request may take: `10s`, `500ms`, `1m30s`, or a number of seconds.
pub fn timeout(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let parsed = match text.parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => text
            .parse::<jiff::SignedDuration>()
            .ok()
            .and_then(|signed| Duration::try_from(signed).ok()),
    };
    let time =
        parsed.ok_or_else(|| format!("`{text}` is not a time such as 10s, 500ms or 1m30s"))?;
    if TIMEOUTS.contains(&time) {
        Ok(time)
    } else {
        Err(format!("`{text}` is not between 100ms and 1h"))
    }
}

/// Yes or no, in the words of YAML and of the shell.
pub fn switch(text: &str) -> Result<bool, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(format!("`{text}` is neither true nor false")),
    }
}

/// How a directory is named where an OCI registry is expected.
const LAYOUT: &str = "oci-layout:";

/// A registry's URL, without trailing slashes below its root.
///
/// A user or password in it is refused: it would end up in logs.
pub fn url(text: &str) -> Result<Url, String> {
    let text = text.trim();
    // Not repeated in the messages before it is known to hold no password.
    let mut url = Url::parse(text)
        .map_err(|error| format!("not a URL such as https://registry.example.com ({error})"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!(
            "a {}: URL, but only http and https work",
            url.scheme()
        ));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "the URL has a user name or password in it; give the key in MUSHER_API_KEY instead"
                .into(),
        );
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(format!("`{text}` has a query or fragment"));
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok(url)
}

/// An OCI registry: `[http[s]://]HOST[:PORT][/PREFIX]`. Without a scheme it is https, on loopback
/// http.
pub fn registry(text: &str) -> Result<Url, String> {
    let text = text.trim();
    if text.contains("://") {
        return url(text);
    }
    let secure = url(&format!("https://{text}"))?;
    if is_loopback(&secure) {
        url(&format!("http://{text}"))
    } else {
        Ok(secure)
    }
}

/// Where OCI artifacts come from: a [`registry`], or `oci-layout:DIR`, a directory.
pub fn oci(text: &str) -> Result<Url, String> {
    let Some(path) = text.trim().strip_prefix(LAYOUT) else {
        return registry(text);
    };
    if path.is_empty() {
        return Err("oci-layout: is followed by a directory".into());
    }
    // A daemon's working directory is another one.
    let path = paths::absolute(Path::new(path)).map_err(|error| error.to_string())?;
    let url = Url::from_file_path(&path)
        .map_err(|()| format!("{} is not a usable path", path.display()))?;
    Url::parse(&format!("{LAYOUT}{}", url.path())).map_err(|error| error.to_string())
}

/// The directory that a value of [`oci`] is, if it is one.
pub fn layout(url: &Url) -> Option<PathBuf> {
    let path = url.as_str().strip_prefix(LAYOUT)?;
    Url::parse(&format!("file://{path}"))
        .ok()?
        .to_file_path()
        .ok()
}

/// Whether a URL's host is loopback and nothing else: `127.0.0.0/8`, `::1` or `localhost`. What may be
/// sent there in the clear stays on this machine.
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        None => false,
    }
}

/// Whether a URL may lead to this machine by any of its host's spellings: loopback, also as an IPv4
/// address in an IPv6 one, or the address of everything. Nobody on the network may send us there.
pub fn is_here(url: &Url) -> bool {
    let ip = match url.host() {
        Some(Host::Ipv4(ip)) => IpAddr::from(ip),
        Some(Host::Ipv6(ip)) => ip.to_canonical(),
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.').to_ascii_lowercase();
            return name == "localhost" || name.ends_with(".localhost");
        }
        None => return false,
    };
    ip.is_loopback() || ip.is_unspecified()
}

/// A mirror of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// What it is a mirror of: `api`, `oci`, or a host; of whatever registry is in use if not said.
    pub of: Option<String>,
    /// Where it is.
    pub url: Url,
    /// Whether it is asked for names too, not only for content.
    pub resolve: bool,
}

/// One mirror: `[FOR=]URL[#resolve]`.
pub fn mirror(text: &str) -> Result<Mirror, String> {
    let text = text.trim();
    let (of, rest) = match text.split_once('=') {
        Some((of, rest)) if !of.contains("://") => (Some(of.trim().to_owned()), rest),
        _ => (None, text),
    };
    let (url, resolve) = match rest.split_once('#') {
        None => (rest, false),
        Some((url, "resolve")) => (url, true),
        Some(_) => return Err("behind the `#` of a mirror only `resolve` can stand".into()),
    };
    if of.as_deref() == Some("") {
        return Err("it does not say what it is a mirror of before the `=`".into());
    }
    Ok(Mirror {
        of,
        url: registry(url)?,
        resolve,
    })
}

/// Mirrors with commas between them, the nearest first.
pub fn mirrors(text: &str) -> Result<Vec<Mirror>, String> {
    text.split(',')
        .filter(|item| !item.trim().is_empty())
        .map(mirror)
        .collect()
}

/// One namespace.
pub fn namespace(text: &str) -> Result<Namespace, String> {
    text.trim().parse().map_err(|error| format!("{error}"))
}

/// Namespaces with commas between them; repeated ones once.
pub fn namespaces(text: &str) -> Result<Vec<Namespace>, String> {
    let mut list = Vec::new();
    for name in text.split(',').filter(|name| !name.trim().is_empty()) {
        let name = namespace(name)?;
        if !list.contains(&name) {
            list.push(name);
        }
    }
    Ok(list)
}

/// A number of threads within [`THREADS`].
pub fn threads(text: &str) -> Result<usize, String> {
    let number = text.trim().parse().ok();
    number
        .filter(|number| THREADS.contains(number))
        .ok_or_else(|| format!("`{text}` is not a number from 2 to 4"))
}

/// Where numbers for monitoring are to be had: `127.0.0.1:9469`, `[::1]:9469`, `unix:PATH`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A port of the loopback interface.
    Tcp(SocketAddr),
    /// A socket in the filesystem, for its owner only.
    Unix(PathBuf),
}

impl FromStr for MetricsAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let address: SocketAddr = text
            .parse()
            .map_err(|_| "neither an address with a port nor unix:PATH".to_owned())?;
        if !address.ip().is_loopback() {
            return Err(format!(
                "{} is not on the loopback interface; put a proxy in front of it",
                address.ip()
            ));
        }
        Ok(Self::Tcp(address))
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}/metrics"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_unix_sockets_are_listened_on() {
        let tcp = |text: &str| text.parse::<MetricsAddress>();
        assert!(matches!(tcp("127.0.0.1:9469"), Ok(MetricsAddress::Tcp(_))));
        assert!(matches!(tcp("[::1]:0"), Ok(MetricsAddress::Tcp(_))));
        assert_eq!(
            tcp("unix:/run/m.sock"),
            Ok(MetricsAddress::Unix("/run/m.sock".into()))
        );
        for text in [
            "0.0.0.0:9469",
            "192.0.2.1:80",
            "[::]:1",
            "9469",
            "localhost:1",
            "",
        ] {
            assert!(tcp(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65536),
            ("512b", 512),
            ("64K", 64 << 10),
            ("4MiB", 4 << 20),
            (" 4 mb ", 4 << 20),
            ("1.5M", 3 << 19),
            ("1.000000001G", (1 << 30) + 1),
            ("2g", 2 << 30),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "M",
            "-1",
            "4 parsecs",
            "1e3",
            "1.M",
            ".5M",
            "1.2.3",
            "0x10",
            "+4",
            "18446744073709551615K",
            "1.0000000001G",
            "4MiB/s",
        ] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cache_whose_unit_was_forgotten_is_refused() {
        for (text, bytes) in [
            ("0", 0),
            ("1MiB", 1 << 20),
            ("1048576", 1 << 20),
            ("2g", 2 << 30),
        ] {
            assert_eq!(cache_size(text), Ok(bytes), "{text}");
        }
        for bad in ["1", " 2 ", "1023K", "0.5M"] {
            let problem = cache_size(bad).unwrap_err();
            assert!(problem.contains(bad.trim()), "{problem}");
            assert!(problem.contains("2GiB"), "{problem}");
        }
        assert!(cache_size("lots").is_err());
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, millis) in [
            ("10s", 10_000),
            ("10", 10_000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("1m 30s", 90_000),
            ("1h", 3_600_000),
        ] {
            assert_eq!(timeout(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in [
            "",
            "0",
            "-5s",
            "10 parsecs",
            "99ms",
            "2h",
            "1e3",
            "18446744073709551616",
        ] {
            assert!(timeout(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mirrors_say_of_what_and_whether_they_resolve() {
        let one = |text: &str| mirror(text).unwrap();
        let plain = one("localhost:5000");
        assert_eq!((plain.of, plain.resolve), (None, false));
        assert_eq!(plain.url.as_str(), "http://localhost:5000/");
        let full = one("ghcr.io=https://cache.example/proxy#resolve");
        assert_eq!((full.of.as_deref(), full.resolve), (Some("ghcr.io"), true));
        assert_eq!(full.url.as_str(), "https://cache.example/proxy");
        assert_eq!(mirrors("a.example, b.example#resolve").unwrap().len(), 2);
        for bad in [
            "",
            "=https://x",
            "https://x#yes",
            "https://x?a=b",
            "u:p@x",
            "oci=ftp://x",
        ] {
            assert!(mirror(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn urls_lose_their_trailing_slash_and_must_be_plain_http() {
        for (text, kept) in [
            ("https://api.musher.dev", "https://api.musher.dev/"),
            ("https://API.musher.dev//", "https://api.musher.dev/"),
            ("http://127.0.0.1:8787/base/", "http://127.0.0.1:8787/base"),
        ] {
            assert_eq!(url(text).unwrap().as_str(), kept);
        }
        for bad in [
            "",
            "api.musher.dev",
            "ftp://x",
            "file:///x",
            "localhost:8787",
            "https://",
            "https://user:pass@x",
            "https://user@x",
            "https://x/?a=b",
            "https://x/#f",
        ] {
            let problem = url(bad).unwrap_err();
            assert!(!problem.contains("pass@"), "{problem}");
        }
    }

    #[test]
    fn this_machine_has_more_spellings_than_may_be_told_a_secret() {
        for (host, loopback, here) in [
            ("127.0.0.1", true, true),
            ("127.9.9.9", true, true),
            ("LocalHost", true, true),
            ("[::1]", true, true),
            ("0.0.0.0", false, true),
            ("[::]", false, true),
            ("[::ffff:127.0.0.1]", false, true),
            ("[::ffff:0.0.0.0]", false, true),
            ("localhost.", false, true),
            ("r.localhost", false, true),
            ("localhost.example", false, false),
            ("[::ffff:192.0.2.1]", false, false),
            ("192.0.2.1", false, false),
        ] {
            let url: Url = format!("http://{host}:1/").parse().unwrap();
            assert_eq!(
                (is_loopback(&url), is_here(&url)),
                (loopback, here),
                "{host}"
            );
        }
    }
}
