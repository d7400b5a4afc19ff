//! Larder's words and its decisions.
//!
//! Everything here is a value or a pure function: no file, socket, clock, environment or runtime.
//! What depends on the time takes it as an argument. That keeps each rule testable as a table, and
//! lets every other crate share one meaning of "digest", "repository" or "fresh".
//!
//! - [`digest`]: what content is called;
//! - [`name`]: what registries, repositories and tags are called;
//! - [`image`]: images as people name them;
//! - [`route`]: which operation of the distribution protocol a path names;
//! - [`address`]: which upstream and repository a client means;
//! - [`range`]: which bytes of a blob a client wants;
//! - [`media`]: media types, and what a client accepts;
//! - [`manifest`]: what a manifest refers to;
//! - [`platform`]: which of an index's images are wanted;
//! - [`layout`]: what is in a file of images;
//! - [`referrer`]: what refers to an image;
//! - [`freshness`]: when a tag's answer may be given without asking upstream;
//! - [`access`]: whether a caller may be given what is stored;
//! - [`eviction`]: what goes first when the budget is full;
//! - [`retention`]: how long content may go unused, and what must stay;
//! - [`owner`]: which of several replicas a blob belongs to;
//! - [`builtin`]: a tiny image that every cache has;
//! - [`size`]: amounts of bytes as people write them.

pub mod access;
pub mod address;
pub mod builtin;
pub mod digest;
pub mod eviction;
pub mod freshness;
pub mod image;
pub mod layout;
pub mod manifest;
pub mod media;
pub mod name;
pub mod owner;
pub mod platform;
pub mod range;
pub mod referrer;
pub mod retention;
pub mod route;
pub mod size;

pub use digest::Digest;
pub use image::ImageName;
pub use name::{Host, Reference, Repository, Tag};
