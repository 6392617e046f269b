//! The path of a file inside a version.

use std::fmt;
use std::str::FromStr;

/// Longest logical path, in bytes (PATH_MAX).
pub const MAX_PATH: usize = 4096;
/// Longest component of a logical path, in bytes (NAME_MAX).
pub const MAX_COMPONENT: usize = 255;

/// Why a logical path is refused. A refused file is hidden and reported; its siblings stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum InvalidPath {
    /// The empty path.
    #[error("the path is empty")]
    Empty,
    /// A leading `/`.
    #[error("the path is absolute")]
    Absolute,
    /// `//`, a trailing `/`, `.` or `..`.
    #[error("the path has an empty, `.` or `..` component")]
    Component,
    /// NUL or a backslash.
    #[error("the path contains NUL or a backslash")]
    Character,
    /// A component over 255 bytes, or more than 4096 bytes in all.
    #[error("the path is too long")]
    TooLong,
}

/// A file's path within a version: relative, with `/` between its components.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogicalPath(Box<str>);

impl LogicalPath {
    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Says why `text` is not a logical path, without building one.
    ///
    /// # Errors
    ///
    /// The first rule that `text` breaks.
    pub fn check(text: &str) -> Result<(), InvalidPath> {
        if text.is_empty() {
            return Err(InvalidPath::Empty);
        }
        if text.starts_with('/') {
            return Err(InvalidPath::Absolute);
        }
        if text.len() > MAX_PATH {
            return Err(InvalidPath::TooLong);
        }
        if text.bytes().any(|b| b == 0 || b == b'\\') {
            return Err(InvalidPath::Character);
        }
        for component in text.split('/') {
            match component {
                "" | "." | ".." => return Err(InvalidPath::Component),
                long if long.len() > MAX_COMPONENT => return Err(InvalidPath::TooLong),
                _ => {}
            }
        }
        Ok(())
    }
}

impl FromStr for LogicalPath {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        Self::check(text)?;
        Ok(Self(text.into()))
    }
}

text_like!(LogicalPath);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_their_directory_are_refused() {
        use InvalidPath::*;
        for (text, reason) in [
            ("", Empty),
            ("/etc/passwd", Absolute),
            ("../x", Component),
            ("a/../b", Component),
            ("a/./b", Component),
            ("a//b", Component),
            ("a/", Component),
            ("a\0b", Character),
            ("a\\b", Character),
            (&"x".repeat(256), TooLong),
            (&"x/".repeat(2049), TooLong),
        ] {
            assert_eq!(LogicalPath::check(text), Err(reason), "{text:?}");
        }
        for good in ["a", "a/b.md", "…/ü", "...", ".hidden/x", &"x".repeat(255)] {
            assert_eq!(LogicalPath::check(good), Ok(()), "{good}");
        }
    }
}
