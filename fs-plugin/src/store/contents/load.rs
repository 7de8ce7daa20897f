//! From a backing file to contents: as it was closed, or by recovery.

use super::{Container, Medium, set_attribute};
use crate::error::Error;
use crate::store::format::{Attribute, Head, Kind, State};
use crate::store::loss;
use crate::store::recovery::{self, Found, Verify};

/// Loads what the attribute says is a container.
pub(super) async fn load<M: Medium>(
    medium: &M,
    len: u64,
    attribute: Attribute,
    writable: bool,
) -> Result<Container, Error> {
    if len == 0 {
        // Whatever it was: empty, it becomes a container, and the attribute has to say so.
        let state = (attribute.kind == Kind::Container).then_some(attribute.state);
        return Ok(Container { attribute: state, ..Container::empty() });
    }
    let in_order = attribute.size_if_clean(len).is_some();
    if in_order {
        // The system may have ended since, before the last bytes came to the disk.
        let is_doubtful = !attribute.durable && attribute.epoch != medium.epoch();
        if is_doubtful && let Some(whole) = as_closed(medium, len, attribute, Verify::Nodes).await?
        {
            return Ok(Container { unverified: true, ..whole });
        }
        if is_doubtful {
            return match recover(medium, len, attribute.state, in_order, writable).await {
                // Not by a crash: where nothing is damaged it is read as it is.
                Err(damaged @ Error::Damaged { .. }) => {
                    let rest = as_closed(medium, len, attribute, Verify::Records).await?;
                    Ok(Container { unverified: true, ..rest.ok_or(damaged)? })
                }
                recovered => recovered,
            };
        }
        if let Some(container) = as_closed(medium, len, attribute, Verify::Records).await? {
            return Ok(container);
        }
        if attribute.durable {
            let what = "head or commit record, the latter before";
            return Err(Error::Damaged { what, offset: len });
        }
    }
    // Not closed in order: a crash, or a daemon that was killed. Or the mark of being closed is on
    // the disk, and the last bytes before it are not: ext4 makes a length within an allocated block
    // durable before the bytes (`ext4_da_should_update_i_disksize`).
    recover(medium, len, attribute.state, in_order, writable).await
}

/// What the file ends with, if that shows what `verify` wants.
async fn as_closed<M: Medium>(
    medium: &M,
    len: u64,
    attribute: Attribute,
    verify: Verify,
) -> Result<Option<Container>, Error> {
    let Some(head) = read_head(medium).await? else { return Ok(None) };
    let found = recovery::commit_at(medium, &head, len, verify).await?;
    Ok(found.map(|found| {
        let container = Container::loaded(head, found, Some(attribute.state));
        let durable_end =
            if attribute.durable { container.record_end } else { container.durable_end };
        Container { durable_end, ..container }
    }))
}

/// The newest commit that holds; what lies behind it is cut. `in_order`: the file is as long as when it
/// was closed, and is cut only if some of it never reached the disk.
pub(super) async fn recover<M: Medium>(
    medium: &M,
    len: u64,
    state: State,
    in_order: bool,
    writable: bool,
) -> Result<Container, Error> {
    if writable {
        // After a sync that has failed the cache has what the disk has not, and says that it is clean.
        medium.forget().await;
    }
    let found = match read_head(medium).await? {
        Some(head) => recovery::newest(medium, &head, len).await?.map(|found| (head, found)),
        None => {
            // The head comes with the first commit. If it never reached the disk, nothing did.
            if medium.read_at(0, Head::LEN).await?.iter().any(|byte| *byte != 0) {
                return Err(Error::Damaged { what: "head", offset: 0 });
            }
            None
        }
    };
    let mut container = match found {
        Some((head, found)) => {
            let recovered = Some(found.record.modified);
            Container { recovered, ..Container::loaded(head, found, Some(State::Dirty)) }
        }
        None => Container { attribute: Some(State::Dirty), ..Container::empty() },
    };
    let end = container.physical;
    if end < len {
        if in_order && !loss::took_frames(medium, end..len).await? {
            return Err(Error::Damaged { what: "commit, behind", offset: end });
        }
        let what = if writable { "cut" } else { "passed over" };
        tracing::warn!("not closed in order: {} bytes behind the newest commit {what}", len - end);
        if writable {
            if state == State::Clean {
                set_attribute(medium, container.attribute(State::Dirty, medium.epoch()))?;
            }
            medium.set_len(end)?;
        }
        container.was_cut = in_order;
    }
    Ok(container)
}

/// As [`recover`], of a file of which nothing but its head says that it is ours: it may have been closed in
/// order all the same, and be damaged. So nothing is cut before it is changed, and where no commit holds
/// there is nothing to show.
pub(super) async fn found_by_head<M: Medium>(
    medium: &M,
    len: u64,
    writable: bool,
) -> Result<Container, Error> {
    if writable {
        medium.forget().await;
    }
    let found = recover(medium, len, State::Dirty, false, false).await?;
    if found.head.is_none() || found.record_end == 0 {
        return Err(Error::Damaged { what: "every commit record before", offset: len });
    }
    Ok(Container { attribute: None, is_uncut: found.physical < len, ..found })
}

/// Head and newest commit, if the file ends with one, as it does when closed in order.
pub(super) async fn closed_in_order<M: Medium>(
    medium: &M,
    len: u64,
) -> Result<Option<(Head, Found)>, Error> {
    let Some(head) = read_head(medium).await? else {
        return Ok(None);
    };
    let found = recovery::commit_at(medium, &head, len, Verify::Records).await?;
    Ok(found.map(|found| (head, found)))
}

pub(super) async fn read_head<M: Medium>(medium: &M) -> Result<Option<Head>, Error> {
    Head::parse(&medium.read_at(0, Head::LEN).await?)
}
