//! stub: the type others compile against

use crate::error::Result;

/// An API key. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// The key itself, for the Authorization header only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Where to look for the key of one registry.
#[derive(Debug, Clone, Default)]
pub struct KeyChain {}

impl KeyChain {
    /// Looks the key up anew (files are read again), so that a rotated key is found.
    ///
    /// # Errors
    ///
    /// A key that cannot be used: see the message.
    pub fn lookup(&self) -> Result<Option<ApiKey>> {
        Ok(None)
    }
}
