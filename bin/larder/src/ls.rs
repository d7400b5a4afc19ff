//! `larder ls`

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::{Duration, Instant, SystemTime};

use larder_api_types::Answer;
use larder_api_types::blobs::{self, Blobs};
use larder_api_types::images::{Image, Images, MAX_PAGE, Query};
use larder_core::size::human_size;

use crate::cli::Ls;
use crate::failure::Failure;
use crate::pin;
use crate::server::{Server, block_on};

/// How long a person looks at nothing before being told what is going on.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn run(command: &Ls) -> Result<(), Failure> {
    if command.pinned {
        return pin::list(command);
    }
    let server = command.server.open()?;
    if command.digests {
        return block_on(list_digests(&server));
    }
    let matching = command.pattern.as_deref().map(glob);
    let mut images = block_on(async { Ok(all(&server, matching).await?) })?;
    if !command.all {
        images = named(images);
    }
    images.sort_by_cached_key(|image| (image.name(), image.tags.clone(), image.digest.clone()));
    let text = match command.json {
        true => {
            let answer = Answer::new(Images { images, next: None });
            let text = serde_json::to_string(&answer).expect("our types have text for keys");
            format!("{text}\n")
        }
        false => table(&images, SystemTime::now()),
    };
    io::stdout().write_all(text.as_bytes()).map_err(Failure::writing)
}

/// Writes the digest of everything that is stored, page by page.
async fn list_digests(server: &Server) -> Result<(), Failure> {
    let mut after = None;
    loop {
        let page: Blobs = server.get("/blobs", &blobs::Query { after }).await?;
        let lines: String = page.blobs.iter().map(|blob| format!("{}\n", blob.digest)).collect();
        io::stdout().write_all(lines.as_bytes()).map_err(Failure::writing)?;
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}

/// A pattern without wildcards is part of a name.
fn glob(pattern: &str) -> String {
    match pattern.contains(['*', '?', '[', '{']) {
        true => pattern.to_owned(),
        false => format!("*{pattern}*"),
    }
}

/// All images, page by page.
async fn all(server: &Server, matching: Option<String>) -> anyhow::Result<Vec<Image>> {
    let (mut images, mut after) = (Vec::new(), None);
    let mut told = Instant::now();
    loop {
        let query = Query { limit: Some(MAX_PAGE), after, matching: matching.clone() };
        let page: Images = server.get("/images", &query).await?;
        images.extend(page.images);
        after = page.next;
        if after.is_none() {
            return Ok(images);
        }
        if told.elapsed() >= PATIENCE {
            // There is nobody to tell if stderr is closed.
            let _ = writeln!(io::stderr(), "{} images so far", images.len());
            told = Instant::now();
        }
    }
}

/// Without those that have no tag of their own and are part of an index that is listed.
fn named(images: Vec<Image>) -> Vec<Image> {
    let parts: HashSet<_> = images
        .iter()
        .flat_map(|index| index.images.iter().map(|part| (index.name(), part.clone())))
        .collect();
    let is_named = |image: &Image| {
        !image.tags.is_empty() || !parts.contains(&(image.name(), image.digest.clone()))
    };
    images.into_iter().filter(is_named).collect()
}

/// One line for each name, below headings; the columns are as wide as they have to be.
fn table(images: &[Image], now: SystemTime) -> String {
    let mut rows = vec![["IMAGE", "SIZE", "USED", "DIGEST"].map(str::to_owned)];
    for image in images {
        let size = match image.missing_bytes {
            0 => human_size(image.stored_bytes),
            missing => {
                let whole = image.stored_bytes.saturating_add(missing);
                format!("{} of {}", human_size(image.stored_bytes), human_size(whole))
            }
        };
        let row = |name| [name, size.clone(), ago(image.last_used, now), image.digest.to_string()];
        match image.tags.is_empty() {
            true => rows.push(row(image.name())),
            false => {
                rows.extend(image.tags.iter().map(|tag| row(format!("{}:{tag}", image.name()))));
            }
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let (name, size, used) = (width(0), width(1), width(2));
    let mut text = String::new();
    for [image, bytes, time, digest] in &rows {
        let _ = writeln!(text, "{image:<name$}  {bytes:>size$}  {time:>used$}  {digest}");
    }
    text
}

/// How long ago something was, in its largest unit: `3 h ago`.
fn ago(then: SystemTime, now: SystemTime) -> String {
    let seconds = now.duration_since(then).unwrap_or_default().as_secs();
    let units = [(86_400, "d"), (3_600, "h"), (60, "min")];
    match units.iter().find(|(unit, _)| seconds >= *unit) {
        Some((unit, name)) => format!("{} {name} ago", seconds / unit),
        None => "just now".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use larder_core::Digest;

    use super::*;

    #[test]
    fn a_part_of_a_name_is_a_pattern() {
        assert_eq!(glob("alpine"), "*alpine*");
        assert_eq!(glob("ghcr.io/*:v?"), "ghcr.io/*:v?");
    }

    #[test]
    fn each_tag_has_a_line_and_what_is_not_whole_says_so() {
        let now = UNIX_EPOCH + Duration::from_secs(100_000);
        let mut image = image("a/b", &["1", "latest"], b"x");
        image.missing_bytes = 2048;
        let text = table(&[image], now);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].starts_with("a.io/a/b:1       "), "{text}");
        assert!(lines[2].contains(":latest  1.00 KiB of 3.00 KiB  1 d ago  sha256:"), "{text}");
    }

    #[test]
    fn images_of_an_index_are_only_listed_when_asked_for_or_tagged() {
        let mut index = image("a", &["1"], b"index");
        index.images.push(Digest::sha256_of(b"part"));
        let others = [
            image("a", &[], b"part"),
            image("a", &["amd64"], b"part"),
            image("a", &[], b"by digest"),
            image("b", &[], b"part"),
        ];
        let all: Vec<Image> = [index.clone()].into_iter().chain(others).collect();
        let kept: Vec<String> =
            named(all).iter().map(|it| format!("{} {}", it.repository, it.tags.len())).collect();
        assert_eq!(kept, ["a 1", "a 1", "a 0", "b 0"]);
    }

    #[test]
    fn times_are_told_in_their_largest_unit() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        for (then, wanted) in [(0, "1 d ago"), (96_400, "1 h ago"), (99_940, "1 min ago")] {
            assert_eq!(ago(at(then), at(100_000)), wanted);
        }
        assert_eq!(ago(at(99_941), at(100_000)), "just now");
        assert_eq!(ago(at(100_001), at(100_000)), "just now");
    }

    fn image(repository: &str, tags: &[&str], bytes: &[u8]) -> Image {
        Image {
            host: "a.io".to_owned(),
            repository: repository.to_owned(),
            tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
            digest: Digest::sha256_of(bytes),
            media_type: String::new(),
            stored_bytes: 1024,
            missing_bytes: 0,
            last_used: UNIX_EPOCH,
            images: Vec::new(),
        }
    }
}
