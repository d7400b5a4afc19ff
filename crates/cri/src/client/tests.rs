//! The client against a fake runtime on a real socket.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use futures_util::{Stream, stream};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tonic::{Request, Response, Status};

use super::*;
use crate::v1::image_service_server::{ImageService, ImageServiceServer};

/// Holds the images whose references it was asked to pull; the reference decides what it says.
#[derive(Clone, Default)]
struct Fake {
    pulled: Arc<Mutex<Vec<v1::PullImageRequest>>>,
}

#[tokio::test]
async fn a_pulled_image_is_there_until_it_is_removed() {
    let (_dir, _fake, client) = connected().await;
    assert_eq!(client.image_status("reg/app:1").await.unwrap(), None);
    let reference = client.pull_image("reg/app:1", None, CALL_DEADLINE).await.unwrap();
    assert_eq!(reference, "reg/app:1");
    assert_eq!(client.image_status("reg/app:1").await.unwrap().unwrap().tags, ["reg/app:1"]);
    assert_eq!(client.list_images().await.unwrap().len(), 1);
    client.remove_image("reg/app:1").await.unwrap();
    assert_eq!(client.list_images().await.unwrap(), []);
}

#[tokio::test]
async fn a_pull_shows_the_credential_it_was_given() {
    let (_dir, fake, client) = connected().await;
    let auth = Auth::Password { username: "ann".to_owned(), password: "s3cret".to_owned() };
    client.pull_image("reg/app:1", Some(auth), CALL_DEADLINE).await.unwrap();
    let seen = fake.pulled.lock().unwrap()[0].auth.clone().unwrap();
    assert_eq!((seen.username.as_str(), seen.password.as_str()), ("ann", "s3cret"));
}

#[tokio::test]
async fn a_failure_is_told_by_what_the_caller_can_do() {
    let (_dir, _fake, client) = connected().await;
    let pull = |reference: &'static str| client.pull_image(reference, None, CALL_DEADLINE);
    assert!(matches!(pull("missing").await, Err(Error::NotFound { .. })));
    assert!(matches!(pull("restarting").await, Err(Error::Unavailable { .. })));
    let failed = pull("broken").await.unwrap_err();
    assert_eq!(failed.to_string(), "pulling an image: layer is broken");
}

#[tokio::test]
async fn a_pull_that_hangs_ends_at_its_deadline() {
    let (_dir, _fake, client) = connected().await;
    let result = client.pull_image("hangs", None, Duration::from_millis(50)).await;
    assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
}

#[tokio::test]
async fn no_socket_is_reported_as_unavailable() {
    let result = Client::connect(Path::new("/nonexistent/runtime.sock")).await;
    assert!(matches!(result, Err(Error::Unavailable { .. })), "{result:?}");
}

async fn connected() -> (TempDir, Fake, Client) {
    let dir = TempDir::new().unwrap();
    let socket = dir.path().join("cri.sock");
    let fake = Fake::default();
    serve(fake.clone(), socket.clone());
    let client = Client::connect(&socket).await.unwrap();
    (dir, fake, client)
}

fn serve(fake: Fake, socket: PathBuf) {
    let listener = UnixListener::bind(socket).unwrap();
    let incoming = stream::unfold(listener, async |listener| {
        let connection = listener.accept().await.map(|(stream, _)| stream);
        Some((connection, listener))
    });
    let server = tonic::transport::Server::builder().add_service(ImageServiceServer::new(fake));
    tokio::spawn(server.serve_with_incoming(incoming));
}

#[tonic::async_trait]
impl ImageService for Fake {
    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        let request = request.into_inner();
        let image_ref = request.image.clone().unwrap().image;
        match image_ref.as_str() {
            "missing" => return Err(Status::not_found("no such image")),
            "restarting" => return Err(Status::unavailable("bye")),
            "broken" => return Err(Status::unknown("layer is broken")),
            "hangs" => std::future::pending().await,
            _ => {}
        }
        self.pulled.lock().unwrap().push(request);
        Ok(Response::new(v1::PullImageResponse { image_ref }))
    }

    async fn list_images(
        &self,
        _: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let pulled = self.pulled.lock().unwrap();
        let images = pulled.iter().map(|request| image(request.image.clone())).collect();
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let wanted = request.into_inner().image;
        let is_here = self.pulled.lock().unwrap().iter().any(|request| request.image == wanted);
        let image = is_here.then(|| image(wanted));
        Ok(Response::new(v1::ImageStatusResponse { image, ..Default::default() }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let unwanted = request.into_inner().image;
        self.pulled.lock().unwrap().retain(|request| request.image != unwanted);
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        Err(Status::unimplemented("not asked for"))
    }

    type StreamImagesStream =
        Pin<Box<dyn Stream<Item = Result<v1::StreamImagesResponse, Status>> + Send>>;

    async fn stream_images(
        &self,
        _: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        Err(Status::unimplemented("not asked for"))
    }
}

fn image(spec: Option<v1::ImageSpec>) -> v1::Image {
    v1::Image { repo_tags: vec![spec.unwrap().image], ..Default::default() }
}
