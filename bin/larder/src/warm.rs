//! `larder warm`

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use larder_api_types::Answer;
use larder_api_types::warm::{Image, MAX_IMAGES, Start, State, Warming};
use larder_core::size::human_size;
use larder_registry::config::{Disk, Files as _};

use crate::cli::Warm;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::server::{Server, block_on};

/// How often a server is asked how far it is: as often as a person looks.
const PERIOD: Duration = Duration::from_millis(300);

pub(crate) fn run(command: &Warm) -> Result<(), Failure> {
    let mut images = command.images.clone();
    if let Some(file) = &command.file {
        images.extend(listed(file).map_err(Failure::Usage)?);
    }
    if images.is_empty() {
        return Err(Failure::Usage(anyhow!("no image is named, and --file names none")));
    }
    let start = Start { images, platforms: command.platform.clone(), referrers: command.referrers };
    let server = command.server.open()?;
    let mut said = Ok(());
    let warmed = block_on(async {
        let tell = |image: &Image| {
            if !command.json && image.state == State::Done && said.is_ok() {
                said = writeln!(io::stdout(), "{}", line(image));
            }
        };
        Ok(warm(&server, start, tell).await?)
    })?;
    if command.json {
        let text = serde_json::to_string(&Answer::new(&warmed));
        said = writeln!(io::stdout(), "{}", text.expect("our types have text for keys"));
    }
    said.map_err(Failure::writing)?;
    complain(&warmed)
}

/// Has a server fetch images, in as many orders as it takes, and waits until it has. Each image is
/// told when it is done.
pub(crate) async fn warm(
    server: &Server,
    start: Start,
    mut tell: impl FnMut(&Image),
) -> anyhow::Result<Warming> {
    let mut all: Option<Warming> = None;
    for images in start.images.chunks(MAX_IMAGES) {
        let part = Start { images: images.to_vec(), ..start.clone() };
        let begun: Warming = server.post("/warm", &part).await?;
        let warmed = follow(server, begun, &mut tell).await?;
        match &mut all {
            None => all = Some(warmed),
            Some(all) => {
                all.images.extend(warmed.images);
                all.ended_at = warmed.ended_at;
            }
        }
    }
    all.context("no image is named")
}

async fn follow(
    server: &Server,
    begun: Warming,
    tell: &mut impl FnMut(&Image),
) -> anyhow::Result<Warming> {
    let mut progress = Progress::new("fetched");
    let mut is_told = vec![false; begun.images.len()];
    let path = format!("/warm/{}", begun.id);
    loop {
        let now: Warming = server.get(&path, &()).await?;
        if now.images.len() != is_told.len() {
            bail!("the server has begun anew meanwhile; ask again");
        }
        for (image, is_told) in now.images.iter().zip(&mut is_told) {
            let is_over = matches!(image.state, State::Done | State::Failed);
            if is_over && !*is_told {
                *is_told = true;
                progress.aside(|| tell(image));
            }
        }
        let bytes = now.images.iter().map(|image| image.bytes).sum();
        // Until the last one has begun, nobody knows how much it is.
        let is_known = now.images.iter().all(|image| image.state != State::Waiting);
        let total = now.images.iter().map(|image| image.total_bytes).sum();
        progress.show(bytes, is_known.then_some(total));
        if now.is_over() {
            return Ok(now);
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Says on stderr what failed.
pub(crate) fn complain(warmed: &Warming) -> Result<(), Failure> {
    let failed: Vec<&Image> =
        warmed.images.iter().filter(|image| image.state != State::Done).collect();
    for image in &failed {
        let why = image.error.as_deref().unwrap_or("it was not fetched");
        // There is nobody to tell if stderr is closed.
        let _ = writeln!(io::stderr(), "{}: {why}", image.image);
    }
    if failed.is_empty() { Ok(()) } else { Err(Failure::Said(1)) }
}

/// `docker.io/library/alpine:3.20  3.47 MiB in 2 blobs  sha256:…`
fn line(image: &Image) -> String {
    let Image { image, digest, bytes, blobs, .. } = image;
    let digest = digest.as_ref().map(ToString::to_string).unwrap_or_default();
    format!("{image}  {} in {blobs} blobs  {digest}", human_size(*bytes))
}

/// The images that a file names, one on a line; what comes after a `#` is for people.
fn listed(file: &Path) -> anyhow::Result<Vec<String>> {
    let bytes = Disk.read(file).with_context(|| format!("reading {}", file.display()))?;
    let text = String::from_utf8(bytes).with_context(|| format!("reading {}", file.display()))?;
    Ok(images_in(&text))
}

fn images_in(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_names_an_image_on_each_line() {
        let text = "# nodes\nalpine:3\n\n  ghcr.io/a/b@sha256:12 # pinned\r\n";
        assert_eq!(images_in(text), ["alpine:3", "ghcr.io/a/b@sha256:12"]);
    }
}
