//! `larder export`

use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow, bail};
use larder_api_types::export::Request;
use larder_api_types::warm::Start;
use larder_core::Digest;
use larder_core::size::human_size;
use tempfile::NamedTempFile;

use crate::cli::Export;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::server::{Server, block_on};
use crate::warm;

pub(crate) fn run(command: &Export) -> Result<(), Failure> {
    let is_stdout = command.output == Path::new("-");
    if is_stdout && io::stdout().is_terminal() {
        return Err(Failure::Usage(anyhow!("an archive is nothing for a terminal; name a file")));
    }
    let without = command.without.iter().map(|file| digests(file)).collect::<Result<Vec<_>, _>>();
    let request = Request {
        images: command.images.clone(),
        platforms: command.platform.clone(),
        referrers: command.referrers,
        without: without.map_err(Failure::Usage)?.concat(),
    };
    let server = command.server.open()?;
    block_on(async {
        if !command.stored {
            let Request { images, platforms, referrers, .. } = request.clone();
            let start = Start { images, platforms, referrers };
            warm::complain(&warm::warm(&server, start, |_| ()).await?)?;
        }
        let written = match is_stdout {
            true => write(&server, &request, &mut io::stdout().lock()).await?,
            false => write_file(&server, &request, &command.output).await?,
        };
        if !is_stdout {
            let file = command.output.display();
            let said = writeln!(io::stdout(), "{file}: {}", human_size(written));
            said.map_err(Failure::writing)?;
        }
        Ok(())
    })
}

/// Writes a file that is whole, or none.
async fn write_file(server: &Server, request: &Request, path: &Path) -> anyhow::Result<u64> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let writing = || format!("writing {}", path.display());
    let mut file = NamedTempFile::new_in(directory).with_context(writing)?;
    let written = write(server, request, file.as_file_mut()).await?;
    file.as_file().sync_all().with_context(writing)?;
    make_readable(file.as_file()).with_context(writing)?;
    file.persist(path).map_err(|error| error.error).with_context(writing)?;
    Ok(written)
}

/// Files that are made to be moved elsewhere can be read by all, as those of other programs.
fn make_readable(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

async fn write(server: &Server, request: &Request, to: &mut impl Write) -> anyhow::Result<u64> {
    let mut progress = Progress::new("exported");
    let (mut archive, total) = server.download("/export", request).await?;
    let mut written = 0;
    while let Some(chunk) = archive.chunk().await.context("the archive broke off")? {
        to.write_all(&chunk).context("writing the archive")?;
        written += chunk.len() as u64;
        progress.show(written, total);
    }
    if total.is_some_and(|total| total != written) {
        bail!("the archive broke off");
    }
    to.flush().context("writing the archive")?;
    Ok(written)
}

/// The digests that a file lists, one on a line, as `larder ls --digests` writes them.
fn digests(file: &Path) -> anyhow::Result<Vec<Digest>> {
    let reading = || format!("reading {}", file.display());
    let text = std::fs::read_to_string(file).with_context(reading)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let parse = |(n, line): (usize, &str)| {
        let line = line.trim();
        line.parse().with_context(|| format!("{}:{}: `{line}` is no digest", file.display(), n + 1))
    };
    lines.map(parse).collect()
}
