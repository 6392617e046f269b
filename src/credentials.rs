//! stub: the type others compile against

use std::path::PathBuf;

use crate::error::{Error, Result};

/// An API key. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// Takes a key as it was written.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] if it is empty or has characters that no header may carry.
    pub fn new(text: String) -> Result<Self> {
        if text.is_empty() || text.chars().any(|c| !c.is_ascii_graphic()) {
            return Err(Error::Config("the API key is not usable".into()));
        }
        Ok(Self(text))
    }

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
pub struct KeyChain {
    fixed: Option<ApiKey>,
    file: Option<PathBuf>,
}

impl KeyChain {
    /// Always this key.
    pub fn fixed(key: ApiKey) -> Self {
        Self {
            fixed: Some(key),
            file: None,
        }
    }

    /// The key in this file.
    pub fn for_file(path: PathBuf) -> Self {
        Self {
            fixed: None,
            file: Some(path),
        }
    }

    /// Looks the key up anew (files are read again), so that a rotated key is found.
    ///
    /// # Errors
    ///
    /// A key that cannot be used: see the message.
    pub fn lookup(&self) -> Result<Option<ApiKey>> {
        match &self.file {
            None => Ok(self.fixed.clone()),
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
                ApiKey::new(text.trim().to_owned()).map(Some)
            }
        }
    }
}
