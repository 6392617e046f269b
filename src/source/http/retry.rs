//! When to ask again, and how long to wait before.

use std::time::{Duration, SystemTime};

use http::{HeaderValue, StatusCode};
use uuid::Uuid;

/// How patient a client is. All of it is bounded by the deadline of each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// For a connection, its TLS handshake included.
    pub connect: Duration,
    /// From sending the request to the end of the answer's headers.
    pub first_byte: Duration,
    /// A body must bring `stall_bytes` in each window of this length (or end), or the attempt
    /// counts as stuck: a trickle of single bytes would hold a reader until its deadline.
    pub stall_window: Duration,
    /// See `stall_window`.
    pub stall_bytes: u64,
    /// How often to ask in all; of an upload only where repeating it is safe.
    pub attempts: u32,
    /// The longest pause before the second attempt; it doubles from one attempt to the next.
    pub backoff: Duration,
    /// The longest pause, unless the server asks for a longer one.
    pub backoff_cap: Duration,
}

impl Default for Timing {
    /// The limits that the newest of the other Musher tools use, but with full jitter: 5 s to
    /// connect, 30 s to the first byte, 4 attempts, pauses of up to 250 ms doubling to 8 s. A body
    /// may take until the deadline as long as it keeps coming. The stall rule, 1 KiB in 10 s, is slower than any modem.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(30),
            stall_window: Duration::from_secs(10),
            stall_bytes: 1 << 10,
            attempts: 4,
            backoff: Duration::from_millis(250),
            backoff_cap: Duration::from_secs(8),
        }
    }
}

impl Timing {
    /// A random pause after the failed attempt number `attempt` (from 1): anything from nothing to
    /// the whole, so that clients which failed together do not come back together.
    pub(super) fn pause(&self, attempt: u32) -> Duration {
        let factor = 2_u32.saturating_pow(attempt.saturating_sub(1));
        let longest = self.backoff.saturating_mul(factor).min(self.backoff_cap);
        // The low 32 bits of a version 4 UUID are random.
        #[allow(clippy::cast_possible_truncation)]
        let random = Uuid::new_v4().as_u128() as u32;
        longest.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

/// Whether the same question may get a better answer in a moment.
pub(super) fn may_help(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// How long a `Retry-After` header asks to wait: whole seconds, or until a date.
pub(super) fn after(header: &HeaderValue) -> Option<Duration> {
    let text = header.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap_and_never_exceed_it() {
        let timing = Timing::default();
        for (attempt, longest) in [(1, 250), (2, 500), (3, 1000), (6, 8000), (60, 8000)] {
            for _ in 0..50 {
                assert!(timing.pause(attempt) <= Duration::from_millis(longest));
            }
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let after = |text: &str| after(&HeaderValue::from_str(text).unwrap());
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("soon"), None);
        assert_eq!(after("-1"), None);
        assert_eq!(
            after("Wed, 21 Oct 2015 07:28:00 GMT"),
            Some(Duration::ZERO),
            "a date in the past asks for nothing"
        );
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        let wait = after(&date).unwrap();
        assert!((98..=100).contains(&wait.as_secs()), "{wait:?}");
    }
}
