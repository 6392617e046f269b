//! Sample bundles, embedded in the binary.

use super::Storage;
use crate::publish::PublishError;

/// Publishes the samples.
///
/// # Errors
///
/// Those of [`Storage::publish`].
pub fn publish_all(_storage: &Storage) -> Result<(), PublishError> {
    Ok(())
}
