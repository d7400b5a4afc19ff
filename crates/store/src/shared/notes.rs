//! What else the other replicas are to know: tags, memberships, uses.
//!
//! Notes are written down behind whoever makes them, in their order. While the index is away they
//! wait, as many as there is room for; beyond it, or after a crash, they are lost, and the others ask
//! upstream what they would have read here.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use larder_core::name::Named;
use larder_core::{Digest, Tag};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tracing::debug;

use super::{Shared, SharedError};
use crate::index::TagRecord;

/// How many notes may wait, at some hundred bytes each (uses: at some kilobytes).
pub(super) const MAX_WAITING: usize = 4096;

/// How long a note that could not be written waits for its next try.
const AGAIN: Duration = Duration::from_millis(500);

/// How many contents are written at once.
const AT_ONCE: usize = 100;

/// Something that the others are to know.
#[derive(Debug)]
pub(crate) enum Note {
    Tag { repository: Arc<Named>, tag: Tag, variant: Arc<str>, record: TagRecord },
    NoTag { repository: Arc<Named>, tag: Tag, now: SystemTime },
    Members { repository: Arc<Named>, digests: Vec<Digest> },
    Uses(Vec<(Digest, SystemTime)>),
}

impl Shared {
    /// Writes something down for the others, soon.
    pub(crate) fn note(&self, note: Note) {
        if self.0.notes.try_send(note).is_err() {
            debug!("more is to be noted for other replicas than can wait");
        }
    }

    /// Writes down what is noted. Ends when it is dropped.
    pub(crate) async fn write_notes(self, mut noted: mpsc::Receiver<Note>) {
        while let Some(note) = noted.recv().await {
            while let Err(SharedError::Away(reason)) = self.write(&note).await {
                debug!(reason, "a note for other replicas waits");
                if self.status().index {
                    // The database has refused it, and would do so again.
                    break;
                }
                sleep(AGAIN).await;
            }
        }
    }

    async fn write(&self, note: &Note) -> Result<(), SharedError> {
        let index = &self.0.index;
        match note {
            Note::Tag { repository, tag, variant, record } => {
                let known = self.ask(index.tag(repository, tag, variant)).await?;
                // Another replica may have asked upstream later than this one.
                if known.is_none_or(|known| known.checked_at < record.checked_at) {
                    self.ask(index.put_tag(repository, tag, variant, record)).await?;
                }
            }
            Note::NoTag { repository, tag, now } => {
                self.ask(index.remove_tag(repository, tag, *now)).await?;
            }
            Note::Members { repository, digests } => {
                for digests in digests.chunks(AT_ONCE) {
                    self.ask(index.put_members(repository, digests)).await?;
                }
            }
            Note::Uses(uses) => {
                let order = self.order().await;
                for uses in uses.chunks(AT_ONCE) {
                    self.ask(index.set_used(uses, order)).await?;
                }
            }
        }
        Ok(())
    }
}
