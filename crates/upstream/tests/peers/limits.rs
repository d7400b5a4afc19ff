//! How much an upstream is asked, when it is left alone, and where it may be.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use larder_upstream::{Client, Error, Reach, Settings};

use crate::fake::*;

#[tokio::test]
async fn an_upstream_that_keeps_failing_is_left_alone_and_then_asked_by_one() {
    static IS_BROKEN: AtomicBool = AtomicBool::new(true);
    let fake = Fake::start(|_| match IS_BROKEN.load(Ordering::SeqCst) {
        true => status(500),
        false => ok("{}"),
    })
    .await;
    let client = client(&fake);
    for _ in 0..5 {
        let error = ask(&client).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    }
    let error = ask(&client).await.unwrap_err();
    let Error::Resting { wait } = error else { panic!("{error:?}") };
    assert!(wait <= Duration::from_secs(1), "{wait:?}");
    assert_eq!(fake.log().len(), 5);

    IS_BROKEN.store(false, Ordering::SeqCst);
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = ask(&client).await {
        assert!(matches!(error, Error::Resting { .. }), "{error:?}");
        assert!(Instant::now() < deadline, "it is back and nobody asks");
        tokio::task::yield_now().await;
    }
    ask(&client).await.unwrap();
}

#[tokio::test]
async fn what_an_upstream_does_not_have_is_no_failure() {
    let fake = Fake::start(|_| status(404)).await;
    let client = client(&fake);
    for _ in 0..10 {
        assert!(matches!(ask(&client).await, Err(Error::NotFound)));
    }
    assert_eq!(fake.log().len(), 10);
}

#[tokio::test]
async fn a_body_takes_its_place_until_it_has_ended() {
    let fake = Fake::start(|_| ok("hello\n")).await;
    let read_timeout = Duration::from_millis(300);
    let client = client_of(Settings { max_requests: 1, read_timeout, ..settings(&[&fake.url]) });
    let blob = client.blob(&repository(), &digest(), None).await.unwrap();
    assert!(matches!(ask(&client).await, Err(Error::Busy)));
    drop(blob);
    ask(&client).await.unwrap();
    assert_eq!(fake.log().len(), 2);
}

#[tokio::test]
async fn no_more_is_asked_per_second_than_may_be() {
    let fake = Fake::start(|_| ok("{}")).await;
    let client = client_of(Settings { max_rate: NonZeroU32::new(20), ..settings(&[&fake.url]) });
    let begin = Instant::now();
    for _ in 0..30 {
        ask(&client).await.unwrap();
    }
    // The first 20 at once, the others 50 ms apart.
    assert!(begin.elapsed() >= Duration::from_millis(450), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn an_address_that_answered_for_another_is_asked_first_from_then_on() {
    let broken = Fake::start(|_| status(500)).await;
    let good = Fake::start(|_| ok("{}")).await;
    let client = client_of(settings(&[&broken.url, &good.url]));
    for _ in 0..5 {
        ask(&client).await.unwrap();
    }
    assert_eq!((broken.log().len(), good.log().len()), (1, 5));
}

#[tokio::test]
async fn an_upstream_that_anybody_may_name_is_not_at_a_private_address() {
    let fake = Fake::start(|_| ok("{}")).await;
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0x7f.1"] {
        let mut url = fake.url.clone();
        url.set_host(Some(host)).unwrap();
        let client = client_of(Settings { reach: public(&[]), ..settings(&[&url]) });
        let error = ask(&client).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable(_)), "{host}: {error:?}");
    }
    assert_eq!(fake.log().len(), 0);
    let reach = public(&["127.0.0.0/8", "::1/128"]);
    let client = client_of(Settings { reach, ..settings(&[&fake.url]) });
    ask(&client).await.unwrap();
}

#[tokio::test]
async fn neither_a_redirect_nor_a_token_service_leads_to_a_private_address() {
    let inner = Fake::start(|_| ok("{}")).await;
    let port = inner.url.port().unwrap();
    let to = format!("http://127.0.0.2:{port}/");
    let realm = format!("Bearer realm=\"{to}\",service=\"x\"");
    let redirecting = Fake::start(move |_| redirect(&to)).await;
    let challenging = Fake::start(move |_| with(401, &[("www-authenticate", &realm)], "")).await;
    for fake in [redirecting, challenging] {
        let reach = public(&["127.0.0.1/32"]);
        let client = client_of(Settings { reach, ..settings(&[&fake.url]) });
        let error = ask(&client).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
        assert_eq!(fake.log().len(), 1);
    }
    assert_eq!(inner.log().len(), 0);
}

async fn ask(client: &Client) -> Result<larder_upstream::RawManifest, Error> {
    client.manifest(&repository(), &tag(), &all()).await
}

fn public(besides: &[&str]) -> Reach {
    Reach::Public { besides: besides.iter().map(|network| network.parse().unwrap()).collect() }
}
