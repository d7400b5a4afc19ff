//! What the store promises to those who use it, told from outside.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod blobs;
mod budget;
mod cancelling;
mod crash;
mod damage;
mod disk;
mod home;
mod keeping;
mod manifests;
mod migrating;
mod opening;
mod partials;
mod races;
mod rebuilding;
mod tags;
mod trace;
mod verify;
