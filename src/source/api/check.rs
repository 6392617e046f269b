//! Whether a registry answers, what time it believes it is, and whether it takes the key.

use std::time::SystemTime;

use http::header::DATE;

use super::{ApiSource, Route};
use crate::error::{Error, Result};
use crate::source::Deadline;

/// Most bytes of an answer that only shows that there is one.
const ENOUGH: u64 = 1 << 20;

/// What a registry thinks of the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyVerdict {
    /// None was sent.
    NoKey,
    /// It knows whose key it is.
    Accepted,
    /// It refuses it, and says why.
    Refused(String),
    /// It could not be asked about it.
    Unknown(String),
}

/// A registry that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The time of the answer by the registry's clock, and by ours.
    pub date: Option<(SystemTime, SystemTime)>,
    /// Whether it takes the key.
    pub key: KeyVerdict,
}

impl ApiSource {
    /// Asks for what every registry has, with and without the key.
    ///
    /// # Errors
    ///
    /// When it does not answer as a registry does within the deadline.
    pub async fn check(&self, deadline: Deadline) -> Result<Checked> {
        let what = "the registry's list of bundles";
        let (list, key) = (Route::hub_search(), self.check_key(deadline));
        let (response, key) = tokio::join!(self.ask(&list, what, ENOUGH, deadline), key);
        let response = response?;
        if !response.status.is_success() {
            return Err(response.error(what));
        }
        response.json::<serde_json::Value>(what)?;
        let date = response.headers.get(DATE);
        let date = date.and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        Ok(Checked {
            date: date.map(|date| (date, SystemTime::now())),
            key,
        })
    }

    async fn check_key(&self, deadline: Deadline) -> KeyVerdict {
        let what = "the key's owner";
        match self.has_key(what, deadline).await {
            Ok(true) => {}
            Ok(false) => return KeyVerdict::NoKey,
            Err(error) => return KeyVerdict::Unknown(error.to_string()),
        }
        let asked = self.ask(&Route::identity(), what, ENOUGH, deadline).await;
        let error = match asked {
            Ok(response) if response.status.is_success() => return KeyVerdict::Accepted,
            // A registry without owners of keys takes any it does not refuse.
            Ok(response) if response.status.as_u16() == 404 => return KeyVerdict::Accepted,
            Ok(response) => response.error(what),
            Err(error) => error,
        };
        match error {
            Error::Denied { reason, .. } => KeyVerdict::Refused(reason),
            error => KeyVerdict::Unknown(error.to_string()),
        }
    }
}
