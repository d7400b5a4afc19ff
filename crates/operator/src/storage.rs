//! Where blobs are kept besides the volumes: a bucket and a database, with their secrets.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Secret;
use larder_k8s::cache::S3;
use toml::{Table, Value};
use url::Url;

use crate::render::Problem;

/// A bucket and a database, as `larder serve` is told about them.
pub(crate) struct Storage {
    bucket: Table,
    index: String,
    password: Option<String>,
    keys: Option<String>,
}

/// Shows no secret.
impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

/// The files of the storage's secret.
const PASSWORD: &str = "index-password";
const KEYS: &str = "aws";

/// Where the spec names the secrets.
pub(crate) const KEYS_FIELD: &str = "storage.s3.secretRef";
pub(crate) const DATABASE_FIELD: &str = "storage.postgresql.secretRef";

// === impl Storage ===

impl Storage {
    /// What the spec and its secrets say. `keys` is the secret of the bucket, if it names one and it
    /// exists; `database` that of the database.
    ///
    /// # Errors
    ///
    /// Something is missing, without which replicas could not start.
    pub(crate) fn read(
        s3: &S3,
        keys: Option<&Secret>,
        database_name: &str,
        database: Option<&Secret>,
    ) -> Result<Self, Problem> {
        let keys = match &s3.secret_ref {
            None => None,
            Some(named) => {
                let text = |key| text(&named.name, keys, key).map_err(|it| it.at(KEYS_FIELD));
                let (id, secret) = (text("AWS_ACCESS_KEY_ID")?, text("AWS_SECRET_ACCESS_KEY")?);
                Some(format!(
                    "[default]\naws_access_key_id = {id}\naws_secret_access_key = {secret}\n"
                ))
            }
        };
        let url = text(database_name, database, "url").map_err(|it| it.at(DATABASE_FIELD))?;
        let (index, password) = without_password(&url).ok_or_else(|| {
            let what = format!("secret `{database_name}`: `url` must be as in postgres://USER:PASSWORD@HOST:5432/NAME");
            Problem::new("SecretIncomplete", what).at(DATABASE_FIELD)
        })?;
        let mut bucket = Table::new();
        let texts = [
            ("bucket", Some(&s3.bucket)),
            ("endpoint", s3.endpoint.as_ref()),
            ("region", s3.region.as_ref()),
            ("prefix", s3.prefix.as_ref()),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                bucket.insert(key.to_owned(), text.clone().into());
            }
        }
        if s3.path_style {
            bucket.insert("path_style".to_owned(), true.into());
        }
        Ok(Self { bucket, index, password, keys })
    }

    /// The keys of the configuration; its secrets are files in `directory`.
    pub(crate) fn keys(&self, directory: &str) -> Vec<(&'static str, Value)> {
        let mut bucket = self.bucket.clone();
        if self.keys.is_some() {
            bucket.insert("credentials_file".to_owned(), format!("{directory}/{KEYS}").into());
        }
        let mut keys = vec![
            ("storage", "s3".into()),
            ("index", self.index.clone().into()),
            ("s3", bucket.into()),
        ];
        if self.password.is_some() {
            keys.push(("index_password_file", format!("{directory}/{PASSWORD}").into()));
        }
        keys
    }

    /// The files of its secret.
    pub(crate) fn files(&self) -> BTreeMap<String, String> {
        let files = [(PASSWORD, &self.password), (KEYS, &self.keys)];
        files.into_iter().filter_map(|(name, it)| Some((name.to_owned(), it.clone()?))).collect()
    }
}

fn text(name: &str, secret: Option<&Secret>, key: &str) -> Result<String, Problem> {
    let Some(secret) = secret else {
        let what = format!("there is no secret `{name}`, which `storage` needs; make it");
        return Err(Problem::new("SecretMissing", what));
    };
    let bytes = secret.data.as_ref().and_then(|data| data.get(key));
    let text = bytes.and_then(|bytes| String::from_utf8(bytes.0.clone()).ok());
    let text = text.map(|text| text.trim().to_owned());
    // A line of its own in a file: more would be other keys.
    text.filter(|text| !text.is_empty() && !text.contains(['\n', '\r'])).ok_or_else(|| {
        let what = format!("secret `{name}`: the key `{key}` must be one line of text");
        Problem::new("SecretIncomplete", what)
    })
}

/// A database's URL and its password, apart.
fn without_password(url: &str) -> Option<(String, Option<String>)> {
    let mut url = Url::parse(url).ok()?;
    matches!(url.scheme(), "postgres" | "postgresql").then_some(())?;
    url.host_str()?;
    let password = url.password().map(|it| percent_decode(it.as_bytes()));
    url.set_password(None).ok()?;
    Some((url.to_string(), password))
}

fn percent_decode(text: &[u8]) -> String {
    percent_encoding::percent_decode(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;
    use larder_k8s::cache::SecretRef;

    use super::*;

    #[test]
    fn passwords_are_files_and_no_part_of_the_configuration() {
        let url = "postgres://larder:p%40ss@db:5432/larder?sslmode=require";
        let storage = Storage::read(
            &s3(),
            Some(&secret(&[("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "hush\n")])),
            "db",
            Some(&secret(&[("url", url)])),
        )
        .unwrap();
        let keys: BTreeMap<_, _> = storage.keys("/files").into_iter().collect();
        assert_eq!(
            keys["index"].as_str(),
            Some("postgres://larder@db:5432/larder?sslmode=require")
        );
        assert_eq!(keys["index_password_file"].as_str(), Some("/files/index-password"));
        assert_eq!(storage.files()["index-password"], "p@ss");
        assert!(storage.files()["aws"].ends_with("aws_secret_access_key = hush\n"));
        let shown = format!("{storage:?}{keys:?}");
        assert!(!shown.contains("hush") && !shown.contains("p@ss"), "{shown}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let message = |keys: Option<&Secret>, database: Option<&Secret>| {
            Storage::read(&s3(), keys, "db", database).unwrap_err().message
        };
        assert!(message(None, None).contains("no secret `keys`"));
        let keys = secret(&[("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "x")]);
        assert!(message(Some(&keys), None).contains("no secret `db`"));
        assert!(message(Some(&keys), Some(&secret(&[]))).contains("the key `url`"));
        let mysql = secret(&[("url", "mysql://db/larder")]);
        assert!(message(Some(&keys), Some(&mysql)).contains("postgres://"));
        let two = secret(&[("AWS_ACCESS_KEY_ID", "id\nx = y"), ("AWS_SECRET_ACCESS_KEY", "x")]);
        assert!(message(Some(&two), None).contains("one line"));
    }

    fn s3() -> S3 {
        let secret_ref = Some(SecretRef { name: "keys".to_owned() });
        S3 { bucket: "larder".to_owned(), secret_ref, ..S3::default() }
    }

    fn secret(given: &[(&str, &str)]) -> Secret {
        let data = given
            .iter()
            .map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
        Secret { data: Some(data.collect()), ..Secret::default() }
    }
}
