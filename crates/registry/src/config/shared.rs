//! Reading `storage`, `index`, `[s3]` and what goes with them: what replicas share.

use std::path::Path;

use larder_store::{DatabaseUrl, S3Keys, S3Settings};
use url::Url;

use super::certificate;
use super::document::{Node, Section};
use super::files::Files;
use super::keys::text;
use super::mistake::{Located, Mistakes, Wrong, wrong};
use super::peers::Peers;
use super::upstream::{HTTP, cannot_read};
use super::value::{self, shown};

/// What a database's URL may say of TLS. Source: PostgreSQL's documentation, "SSL Support".
const MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];

/// What a database's URL may say after its `?`. The library would log others with their values.
const PARAMETERS: [&str; 8] =
    ["sslmode", "sslrootcert", "sslcert", "sslkey", "host", "port", "user", "dbname"];

/// The region of whoever has none.
const DEFAULT_REGION: &str = "us-east-1";

/// Whose keys count in a file of several.
const DEFAULT_PROFILE: &str = "default";

/// What replicas share, and how this one takes part.
#[derive(Clone, Debug, PartialEq)]
pub struct Shared {
    /// The index, in PostgreSQL.
    pub database: DatabaseUrl,
    /// The bucket.
    pub s3: S3Settings,
    /// Whether clients are sent to the bucket for blobs that are not stored here.
    pub redirect: bool,
    /// How many bytes of the bucket may be taken. Default: any number.
    pub budget: Option<u64>,
    /// Where the other replicas reach this one: scheme and authority, path `/`. Default: the first
    /// address that is listened on.
    pub advertise: Option<Url>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Storage {
    Disk,
    S3,
}

#[derive(Debug)]
enum Index {
    Sqlite,
    Postgres(Url),
}

#[derive(Debug)]
struct Bucket {
    settings: S3Settings,
    redirect: bool,
    budget: Option<u64>,
}

/// The keys as they are configured, each right for itself.
#[derive(Debug)]
pub(super) struct Keys {
    storage: Option<Located<Storage>>,
    index: Option<Located<Index>>,
    password: Option<Located<String>>,
    bucket: Option<Located<Bucket>>,
    pub(super) advertise: Option<Located<Url>>,
    /// Whether a key is there that is wrong: what seems to be missing may be that one.
    is_wrong: bool,
}

impl Keys {
    pub(super) fn read(root: &mut Section<'_>, files: &dyn Files, mistakes: &mut Mistakes) -> Self {
        let n_before = mistakes.len();
        let mut keys = Self {
            storage: text(root, mistakes, "storage", storage),
            index: text(root, mistakes, "index", |text| index(text, files)),
            password: text(root, mistakes, "index_password_file", |path| first_line(path, files)),
            bucket: root.take("s3").and_then(|node| bucket(node, files, mistakes)),
            advertise: text(root, mistakes, "advertise", advertise),
            is_wrong: false,
        };
        keys.is_wrong = mistakes.len() > n_before;
        keys
    }

    /// Whether anything is shared.
    pub(super) fn is_shared(&self) -> bool {
        self.storage.as_ref().is_some_and(|it| it.value == Storage::S3)
    }

    /// What is wrong with them beside each other. `is_anywhere`: whether this process listens on all
    /// addresses of the machine first, so that nobody knows which one others reach.
    pub(super) fn check(&self, peers: &Peers, is_anywhere: bool, mistakes: &mut Mistakes) {
        if self.is_wrong {
            return;
        }
        let is_s3 = self.is_shared();
        let postgres = self.index.as_ref().filter(|it| matches!(it.value, Index::Postgres(_)));
        if let (Some(Located { at, .. }), true, None) = (&self.storage, is_s3, postgres) {
            let alone = wrong("replicas that share a bucket share an index, too");
            mistakes.note(at, alone.advise("add index = \"postgres://HOST/DATABASE\""));
        }
        if let (Some(Located { at, .. }), false) = (postgres, is_s3) {
            let alone = wrong("replicas that share an index share a bucket, too");
            mistakes.note(at, alone.advise("add storage = \"s3\" and [s3], or remove it"));
        }
        match (&self.storage, &self.bucket) {
            (Some(Located { at, .. }), None) if is_s3 => {
                let none = wrong("nothing says which bucket");
                mistakes.note(at, none.advise("add [s3] with bucket = \"NAME\""));
            }
            (_, Some(Located { at, .. })) if !is_s3 => {
                mistakes.note(at, wrong("has no effect").advise("add storage = \"s3\""));
            }
            _ => {}
        }
        if let Some(Located { at, .. }) = &self.password {
            match postgres {
                None => mistakes.note(at, wrong("there is no database").advise("remove it")),
                Some(Located { value: Index::Postgres(url), .. }) if url.password().is_some() => {
                    let twice = wrong("`index` has a password in it");
                    mistakes.note(at, twice.advise("remove one of them"));
                }
                Some(_) => {}
            }
        }
        if let (Some(Located { at, .. }), false) = (&self.advertise, is_s3) {
            mistakes.note(at, wrong("has no effect").advise("remove it, or add storage = \"s3\""));
        }
        if let (Some(first), true) = (peers.entries.first(), is_s3) {
            let twice = wrong("replicas that share an index find each other in it");
            mistakes.note(&first.at, twice.advise("remove `peers`"));
        }
        if let (Some(Located { at, .. }), true, true, None) =
            (&self.storage, is_s3, is_anywhere, &self.advertise)
        {
            let unknown =
                wrong("the other replicas cannot know which address of this machine is meant");
            mistakes.note(at, unknown.advise("add advertise = \"http://ADDRESS:PORT\""));
        }
    }

    /// What was found right.
    pub(super) fn finish(self) -> Option<Shared> {
        let Index::Postgres(mut url) = self.index?.value else { return None };
        if let Some(password) = self.password {
            // It has a host, or a parameter that says it.
            let _ = url.set_password(Some(&password.value));
        }
        let Bucket { settings: s3, redirect, budget } = self.bucket?.value;
        let advertise = self.advertise.map(|it| it.value);
        Some(Shared { database: DatabaseUrl(url.into()), s3, redirect, budget, advertise })
    }
}

fn storage(text: &str) -> Result<Storage, Wrong> {
    match text {
        "disk" => Ok(Storage::Disk),
        "s3" => Ok(Storage::S3),
        other => {
            Err(wrong(format!("`{}` is no kind of storage", shown(other)))
                .write("\"disk\" or \"s3\""))
        }
    }
}

/// Never shows what was written, which may have a password in it.
fn index(text: &str, files: &dyn Files) -> Result<Index, Wrong> {
    if text == "sqlite" {
        return Ok(Index::Sqlite);
    }
    let advice = "\"sqlite\", or it as in \"postgres://USER@HOST:5432/DATABASE\"";
    let url = Url::parse(text).map_err(|_| wrong("is not the URL of a database").write(advice))?;
    if !matches!(url.scheme(), "postgres" | "postgresql") || url.fragment().is_some() {
        return Err(wrong("is not the URL of a PostgreSQL database").write(advice));
    }
    if url.query_pairs().any(|(name, _)| name == "password") {
        return Err(wrong("has the password after its `?`")
            .advise("add index_password_file = \"PATH\" instead"));
    }
    if url.query_pairs().any(|(name, _)| !PARAMETERS.contains(&&*name)) {
        let known = PARAMETERS.join(", ");
        return Err(wrong("has something unknown after its `?`").write(format!("only {known}")));
    }
    check_tls(&url, files)?;
    let has_host = url.host_str().is_some_and(|host| !host.is_empty())
        || url.query_pairs().any(|(name, _)| name == "host");
    match has_host {
        true => Ok(Index::Postgres(url)),
        false => Err(wrong("has no host").write(advice)),
    }
}

/// What a database's URL says of TLS is there, and counts.
fn check_tls(url: &Url, files: &dyn Files) -> Result<(), Wrong> {
    let said = |key: &str| {
        let pairs = url.query_pairs().filter(|(name, _)| name == key);
        pairs.last().map(|(_, value)| value.into_owned())
    };
    let mode = said("sslmode");
    if mode.as_ref().is_some_and(|mode| !MODES.contains(&mode.as_str())) {
        return Err(wrong("has an unknown `sslmode`").write(format!("one of {}", MODES.join(", "))));
    }
    if let Some(path) = said("sslrootcert") {
        certificate::authorities(&path, files).map_err(|it| it.within("sslrootcert"))?;
        if !mode.is_some_and(|mode| mode.starts_with("verify-")) {
            let unused = wrong("has an `sslrootcert` that is not asked for");
            return Err(unused.advise("add sslmode=verify-full, or remove it"));
        }
    }
    match (said("sslcert"), said("sslkey")) {
        (None, None) => Ok(()),
        (Some(cert), Some(key)) => {
            certificate::authorities(&cert, files).map_err(|it| it.within("sslcert"))?;
            let read = files.read(Path::new(&key));
            read.map(drop).map_err(|error| cannot_read(&key, &error).within("sslkey"))
        }
        _ => Err(wrong("has one of `sslcert` and `sslkey`").advise("add the other one")),
    }
}

/// `http://10.0.0.1:5000`
pub(super) fn advertise(text: &str) -> Result<Url, Wrong> {
    value::base_url(text, &HTTP)
}

/// The first line of a file, which has something in it.
fn first_line(path: &str, files: &dyn Files) -> Result<String, Wrong> {
    let bytes = files.read(&value::path(path)?).map_err(|error| cannot_read(path, &error))?;
    let line = std::str::from_utf8(&bytes).ok().and_then(|text| text.lines().next());
    match line.map(str::trim_end).filter(|line| !line.is_empty()) {
        Some(line) => Ok(line.to_owned()),
        None => {
            Err(wrong("the file has no text in its first line").write("a file with a password"))
        }
    }
}

fn bucket(node: Node<'_>, files: &dyn Files, mistakes: &mut Mistakes) -> Option<Located<Bucket>> {
    let Located { at, value: mut section } = mistakes.keep(node.at.clone(), node.section())?;
    let n_before = mistakes.len();
    let endpoint = text(&mut section, mistakes, "endpoint", |text| value::base_url(text, &HTTP));
    let ca = text(&mut section, mistakes, "ca", |path| {
        let (_, pem) = certificate::authorities(path, files)?;
        Ok(String::from_utf8_lossy(&pem).into_owned())
    });
    let name = text(&mut section, mistakes, "bucket", bucket_name);
    let prefix = text(&mut section, mistakes, "prefix", prefix);
    let region = text(&mut section, mistakes, "region", |text| match text {
        "" => Err(wrong("is empty").write("a name such as eu-central-1")),
        region => Ok(region.to_owned()),
    });
    let mut boolean = |key| {
        let node: Node<'_> = section.take(key)?;
        let value = node.boolean();
        mistakes.keep(node.at, value)
    };
    let (path_style, redirect) = (boolean("path_style"), boolean("redirect"));
    let budget = text(&mut section, mistakes, "budget", value::quota);
    let profile = text(&mut section, mistakes, "profile", |text| Ok(text.to_owned()));
    let keys = section.take("credentials_file").and_then(|node| {
        let profile = profile.as_ref().map_or(DEFAULT_PROFILE, |it| &it.value);
        let keys = node.text().and_then(|path| keys_in(path, profile, files));
        mistakes.keep(node.at, keys)
    });
    section.finish(mistakes);
    if name.is_none() && mistakes.len() == n_before {
        mistakes.note(&at, wrong("nothing says which bucket").advise("add bucket = \"NAME\""));
    }
    if let (Some(Located { at, .. }), None) = (&profile, &keys)
        && mistakes.len() == n_before
    {
        mistakes.note(at, wrong("has no effect").advise("add credentials_file = \"PATH\""));
    }
    let endpoint = endpoint.map(|it| it.value);
    if let (Some(Located { at, .. }), Some("http")) = (&ca, endpoint.as_ref().map(Url::scheme)) {
        let useless = wrong("the server is not asked by https");
        mistakes.note(at, useless.advise("remove it, or write an https URL in `endpoint`"));
    }
    let settings = S3Settings {
        // Servers of one's own seldom have a name for each bucket.
        path_style: path_style.map_or(endpoint.is_some(), |it| it.value),
        endpoint,
        ca: ca.map(|it| it.value),
        bucket: name?.value,
        prefix: prefix.map_or_else(String::new, |it| it.value),
        region: region.map_or_else(|| DEFAULT_REGION.to_owned(), |it| it.value),
        keys: keys.map(|it| it.value),
    };
    let (redirect, budget) = (redirect.is_some_and(|it| it.value), budget.map(|it| it.value));
    Some(Located { at, value: Bucket { settings, redirect, budget } })
}

/// Source: Amazon S3 user guide, "General purpose bucket naming rules"; older ones may be longer and
/// have capitals and `_`.
fn bucket_name(text: &str) -> Result<String, Wrong> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    match (3..=255).contains(&text.len()) && text.chars().all(is_good) {
        true => Ok(text.to_owned()),
        false => Err(wrong(format!("`{}` cannot be the name of a bucket", shown(text)))
            .write("3 to 255 letters, digits, -, . and _")),
    }
}

fn prefix(text: &str) -> Result<String, Wrong> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let is_part = |part: &str| !matches!(part, "" | "." | "..") && part.chars().all(is_good);
    let trimmed = text.trim_matches('/');
    let is_right = trimmed.is_empty() || trimmed.split('/').all(is_part);
    match is_right && trimmed.len() <= 255 {
        true => Ok(trimmed.to_owned()),
        false => Err(wrong(format!("`{}` cannot begin a key", shown(text)))
            .write("parts of letters, digits, -, . and _, with / between them")),
    }
}

/// The keys of one profile in a file of the form that AWS's programs share.
///
/// Source: AWS SDKs and Tools reference guide, "Shared config and credentials files".
fn keys_in(path: &str, profile: &str, files: &dyn Files) -> Result<S3Keys, Wrong> {
    let bytes = files.read(Path::new(path)).map_err(|error| cannot_read(path, &error))?;
    let text = String::from_utf8_lossy(&bytes);
    let (mut is_ours, mut id, mut secret, mut token) = (false, None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
            is_ours = name.trim() == profile;
        }
        let Some((key, value)) = line.split_once('=').filter(|_| is_ours) else { continue };
        let value = Some(value.trim().to_owned());
        match key.trim() {
            "aws_access_key_id" => id = value,
            "aws_secret_access_key" => secret = value,
            "aws_session_token" => token = value,
            _ => {}
        }
    }
    match (id, secret) {
        (Some(id), Some(secret)) => Ok(S3Keys { id, secret, token }),
        _ => Err(wrong(format!("the file has no keys under [{}]", shown(profile)))
            .write("a file with aws_access_key_id and aws_secret_access_key")),
    }
}
