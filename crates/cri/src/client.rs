//! The calls.

use std::path::Path;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::v1::image_service_client::ImageServiceClient;
use crate::v1::runtime_service_client::RuntimeServiceClient;
use crate::{Auth, Error, Image, v1};

/// How long the runtime may take to accept a connection. Its socket is local.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// How long a call may take that downloads nothing. The kubelet allows two minutes; listing a
/// thousand images on a busy disk was seen to take seconds.
const CALL_DEADLINE: Duration = Duration::from_secs(60);

/// The largest answer that is read, as the kubelet does: a list of images is a few hundred bytes
/// an image.
const MAX_ANSWER: usize = 16 << 20;

/// A connection to a runtime. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    images: ImageServiceClient<Channel>,
    runtime: RuntimeServiceClient<Channel>,
}

/// Who the runtime says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// `containerd`, `cri-o`.
    pub name: String,
    /// The runtime's version, as it writes it: `1.6.20~ds1`, `v2.1.9`.
    pub version: String,
    /// The version of the interface: `v1`.
    pub api: String,
}

impl Client {
    /// Connects to the runtime that listens on the unix socket at `path`.
    ///
    /// # Errors
    ///
    /// - [`Error::Unavailable`]: there is no such socket, or nobody listens on it.
    /// - [`Error::TimedOut`]: nobody accepts on it within 5 seconds.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        let act = "connecting to the runtime";
        let unavailable =
            |source: tonic::transport::Error| Error::Unavailable { act, source: source.into() };
        let endpoint =
            Endpoint::from_shared(format!("unix://{}", path.display())).map_err(unavailable)?;
        let channel = tokio::time::timeout(CONNECT_DEADLINE, endpoint.connect())
            .await
            .map_err(|_| Error::TimedOut { act, after: CONNECT_DEADLINE })?
            .map_err(unavailable)?;
        Ok(Self {
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MAX_ANSWER),
            runtime: RuntimeServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER),
        })
    }

    /// Asks the runtime who it is.
    ///
    /// # Errors
    ///
    /// As [`Error`]; none that another call would not also meet.
    pub async fn version(&self) -> Result<Version, Error> {
        let mut runtime = self.runtime.clone();
        let call = runtime.version(v1::VersionRequest::default());
        let answer = within(CALL_DEADLINE, "asking for the runtime's version", call).await?;
        Ok(Version {
            name: answer.runtime_name,
            version: answer.runtime_version,
            api: answer.runtime_api_version,
        })
    }

    /// Pulls and unpacks the image that `reference` names (`HOST/REPOSITORY:TAG` or `@DIGEST`),
    /// showing `auth` to whoever asks for it, and returns the runtime's reference for the image.
    ///
    /// # Errors
    ///
    /// - [`Error::TimedOut`] after `deadline`: the pull is cancelled.
    /// - [`Error::NotFound`], [`Error::Failed`]: the image could not be had. The text is the
    ///   runtime's, and is fit for a person.
    /// - [`Error::Unavailable`]: ask [`Client::image_status`] before pulling again.
    pub async fn pull_image(
        &self,
        reference: &str,
        auth: Option<Auth>,
        deadline: Duration,
    ) -> Result<String, Error> {
        let request = v1::PullImageRequest {
            image: Some(spec(reference)),
            auth: auth.map(Auth::into_message),
            sandbox_config: None,
        };
        let mut images = self.images.clone();
        let answer = within(deadline, "pulling an image", images.pull_image(request)).await?;
        Ok(answer.image_ref)
    }

    /// Every image the runtime holds, in no order.
    ///
    /// # Errors
    ///
    /// As [`Error`]; [`Error::Failed`] also when the answer is larger than 16 MiB.
    pub async fn list_images(&self) -> Result<Vec<Image>, Error> {
        let mut images = self.images.clone();
        let call = images.list_images(v1::ListImagesRequest::default());
        let answer = within(CALL_DEADLINE, "listing images", call).await?;
        Ok(answer.images.into_iter().map(Image::from_message).collect())
    }

    /// The image that `reference` names, if the runtime holds it. An image's id is a reference too.
    ///
    /// # Errors
    ///
    /// As [`Error`]; that the image is not there is no error.
    pub async fn image_status(&self, reference: &str) -> Result<Option<Image>, Error> {
        let request = v1::ImageStatusRequest { image: Some(spec(reference)), verbose: false };
        let mut images = self.images.clone();
        let call = images.image_status(request);
        let answer = within(CALL_DEADLINE, "asking for an image", call).await?;
        Ok(answer.image.map(Image::from_message))
    }

    /// Removes the image that `reference` names, with all its other names. That it is not there is
    /// no error.
    ///
    /// # Errors
    ///
    /// As [`Error`]; [`Error::Failed`] when the runtime will not let go of it.
    pub async fn remove_image(&self, reference: &str) -> Result<(), Error> {
        let request = v1::RemoveImageRequest { image: Some(spec(reference)) };
        let mut images = self.images.clone();
        within(CALL_DEADLINE, "removing an image", images.remove_image(request)).await?;
        Ok(())
    }
}

fn spec(reference: &str) -> v1::ImageSpec {
    v1::ImageSpec { image: reference.to_owned(), ..Default::default() }
}

/// What `call` answers, if it does so within `deadline`. Dropping a call cancels it.
async fn within<T>(
    deadline: Duration,
    act: &'static str,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, Error> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(Error::from_status(act, status)),
        Err(_) => Err(Error::TimedOut { act, after: deadline }),
    }
}

#[cfg(test)]
mod tests;
