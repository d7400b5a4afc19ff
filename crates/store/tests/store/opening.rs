//! Who may open a directory.

use larder_store::{OpenError, OpenIndexError};

use crate::home::{Home, close, commit, content};

#[tokio::test]
async fn a_store_that_is_open_cannot_be_opened_again() {
    let home = Home::new();
    let store = home.open().await;
    let error = home.try_open(None).await.unwrap_err();
    assert!(matches!(error, OpenError::InUse(_)), "{error}");
    close(store).await;
    home.open().await;
}

#[tokio::test]
async fn a_store_that_another_process_has_open_is_in_use() {
    let home = Home::new();
    close(home.open().await).await;
    let lock = home.path().join("lock");
    let mut other = std::process::Command::new("flock")
        .args([lock.as_os_str(), "sh".as_ref(), "-c".as_ref(), "echo held; read _".as_ref()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut held = [0; 5];
    std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut held).unwrap();
    let error = home.try_open(None).await.unwrap_err();
    assert!(matches!(error, OpenError::InUse(_)), "{error}");
    assert!(error.to_string().contains("in use by another larder"), "{error}");
    drop(other.stdin.take());
    other.wait().unwrap();
    home.open().await;
}

#[tokio::test]
async fn an_index_of_a_newer_version_is_refused_and_left_as_it_is() {
    let home = Home::new();
    let store = home.open().await;
    commit(&store, &content(1, 10)).await;
    close(store).await;
    home.sql(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
         VALUES (9999, 'later', TRUE, x'00', 0)",
    )
    .await;
    let error = home.try_open(None).await.unwrap_err();
    let newer = OpenIndexError::Newer;
    assert!(matches!(&error, OpenError::Index { source: OpenIndexError::Newer, .. }), "{error}");
    assert!(newer.to_string().contains("newer version"));
    assert_eq!(home.rows().await.len(), 1);
}

#[tokio::test]
async fn a_directory_that_is_no_directory_is_named_in_the_error() {
    let home = Home::new();
    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    let settings = larder_store::Settings::new(file.clone());
    let error = larder_store::Store::open(settings).await.unwrap_err();
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
}
