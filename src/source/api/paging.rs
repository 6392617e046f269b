//! Lists that come in pages.
//!
//! A cursor is opaque and goes back as it came. Servers have been seen to hand out the same cursor
//! for ever, so a repeated one ends the listing with an error; half a list passed off as the whole
//! would make names vanish.

use std::collections::HashSet;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{ApiSource, Trail, read};
use crate::error::Result;
use crate::source::Deadline;
use crate::source::api::route::Route;
use crate::source::http::MAX_ANSWER;

/// Most pages of one list.
const MAX_PAGES: usize = 10_000;
/// Most rows of one list.
const MAX_ROWS: usize = 1_000_000;
/// The page size that is asked for. No default or maximum is documented; a server that refuses
/// this one is asked for pages of its own choice.
const PAGE_SIZE: &str = "100";

/// One page. The paging fields are in `meta`, or beside the data.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Page<T> {
    pub(super) data: Vec<T>,
    meta: Option<Meta>,
    next_cursor: Option<String>,
    has_more: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    next_cursor: Option<String>,
    has_more: Option<bool>,
}

impl<T> Page<T> {
    /// The cursor of the next page, if there is one.
    fn next(&mut self) -> Option<String> {
        let meta = self.meta.take();
        let (cursor, more) = match meta {
            Some(meta) => (
                meta.next_cursor.or(self.next_cursor.take()),
                meta.has_more.or(self.has_more),
            ),
            None => (self.next_cursor.take(), self.has_more),
        };
        cursor.filter(|cursor| !cursor.is_empty() && more != Some(false))
    }
}

impl ApiSource {
    /// All rows of a list; `None` if the next route should be asked.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`](crate::error::Error::Malformed) for a cursor that repeats or a list
    /// without end; every error of a later page, since half a list is none.
    pub(super) async fn pages<T: DeserializeOwned + Send + 'static>(
        &self,
        list: &Route,
        what: &str,
        trail: &mut Trail,
        deadline: Deadline,
    ) -> Result<Option<Vec<T>>> {
        let mut rows: Vec<T> = Vec::new();
        let mut seen = HashSet::new();
        let mut cursor: Option<String> = None;
        let mut sized = true;
        loop {
            let mut route = list.clone();
            if sized {
                route.add("limit", PAGE_SIZE);
            }
            if let Some(cursor) = &cursor {
                route.add("cursor", cursor);
            }
            let response = self.ask(&route, what, MAX_ANSWER, deadline).await?;
            let status = response.status;
            if matches!(status.as_u16(), 400 | 422) && sized && cursor.is_none() {
                sized = false;
                continue;
            }
            if !status.is_success() {
                if cursor.is_some() {
                    return Err(response.error(what));
                }
                return trail.pass(&response, what).map(|()| None);
            }
            let malformed = response.malformed(what, "the list has no end");
            let mut page: Page<T> =
                read(response, what, |response, what| response.json(what)).await?;
            rows.append(&mut page.data);
            let Some(next) = page.next() else {
                return Ok(Some(rows));
            };
            if !seen.insert(next.clone()) || seen.len() >= MAX_PAGES || rows.len() > MAX_ROWS {
                return Err(malformed);
            }
            cursor = Some(next);
        }
    }
}
