use serde_json::{Value, json};

use super::*;
use crate::manifest::documents;

#[test]
fn each_rule_of_a_cache_has_its_message() {
    let long = "a".repeat(55);
    let cases: [(&str, Value, &str, &str); 24] = [
        ("upstream", json!(""), "upstream", "is empty"),
        ("upstream", json!("https://docker.io"), "upstream", "has a scheme"),
        ("upstream", json!("Docker.io"), "upstream", "is no DNS name"),
        ("upstream", json!("docker.io/library"), "upstream", "is no DNS name"),
        ("upstream", json!("a.b:0"), "upstream", "has no port of 1 to 65535"),
        ("upstream", json!("a.b:x"), "upstream", "has no port of 1 to 65535"),
        ("remoteURL", json!("ftp://a.b"), "remoteURL", "must begin with http:// or https://"),
        ("remoteURL", json!("a.b"), "remoteURL", "is no URL"),
        ("remoteURL", json!("https://a.b/path"), "remoteURL", "has a path"),
        ("remoteURL", json!("https://a.b?q"), "remoteURL", "has a query or a fragment"),
        ("remoteURL", json!("https://u:hunter2@a.b"), "remoteURL", "has a user in it"),
        ("volume", json!({"size": "0"}), "volume.size", "must be more than 0"),
        ("volume", json!({"size": "-1Gi"}), "volume.size", "must be more than 0"),
        ("volume", json!({"size": "much"}), "volume.size", "is no amount"),
        ("volume", json!({"storageClassName": "A"}), "volume.storageClassName", "is no DNS name"),
        ("garbageCollection", json!({"ttl": "-1h"}), "garbageCollection.ttl", "is negative"),
        ("garbageCollection", json!({"ttl": "7d"}), "garbageCollection.ttl", "is no duration"),
        ("garbageCollection", json!({"ttl": ""}), "garbageCollection.ttl", "is no duration"),
        ("proxy", json!({"httpProxy": "a.b:3128"}), "proxy.httpProxy", "must begin with http"),
        ("proxy", json!({"httpsProxy": "http://a.b/x"}), "proxy.httpsProxy", "has a path"),
        ("serviceNameSuffix", json!(long), "serviceNameSuffix", "54 at most"),
        ("serviceNameSuffix", json!("a.b"), "serviceNameSuffix", "is no DNS label"),
        ("serviceNameSuffix", json!("-a"), "serviceNameSuffix", "is no DNS label"),
        ("unheardOf", json!(1), "", "unknown field `unheardOf`"),
    ];
    for (key, value, path, message) in cases {
        let mut cache = json!({"upstream": "docker.io"});
        cache[key] = value.clone();
        let mistakes = Objects::read(&[registry(&[cache])]).unwrap_err();
        assert_eq!(mistakes.len(), 1, "{key}: {value}: {mistakes:?}");
        let found = &mistakes[0];
        let path = if path.is_empty() { String::new() } else { format!("caches[0].{path}") };
        assert_eq!(found.path, path, "{key}: {value}");
        assert!(found.message.contains(message), "{key}: {value}: {found}");
        assert!(!found.to_string().contains("hunter2"), "{found}");
    }
}

#[test]
fn each_rule_of_a_mirror_has_its_message() {
    let mirror = |hosts: Value| json!({"upstream": "quay.io", "hosts": hosts});
    let one = |host: Value| mirror(json!([host]));
    let cases = [
        (json!({"upstream": "", "hosts": [{"host": "https://m"}]}), "upstream", "is empty"),
        (mirror(json!([])), "hosts", "at least one host"),
        (one(json!({"host": "m.example"})), "hosts[0].host", "begins with http:// or https://"),
        (one(json!({"host": "https://m/a/../b"})), "hosts[0].host", "`.` or `..`"),
        (
            mirror(json!([{"host": "https://m"}, {"host": "https://m"}])),
            "hosts[1].host",
            "is there already",
        ),
        (
            one(json!({"host": "https://m", "capabilities": ["push"]})),
            "hosts[0].capabilities",
            "write pull or resolve",
        ),
        (
            one(json!({"host": "https://m", "capabilities": ["pull", "pull"]})),
            "hosts[0].capabilities",
            "is there already",
        ),
    ];
    for (mirror, path, message) in cases {
        let mistakes = Objects::read(&[mirrors(std::slice::from_ref(&mirror))]).unwrap_err();
        assert_eq!(mistakes.len(), 1, "{mirror}: {mistakes:?}");
        assert_eq!(mistakes[0].path, format!("mirrors[0].{path}"));
        assert!(mistakes[0].message.contains(message), "{mirror}: {}", mistakes[0]);
    }
    let good = one(json!({"host": "https://m.example/path", "capabilities": ["pull", "resolve"]}));
    Objects::read(&[mirrors(&[good])]).unwrap();
}

#[test]
fn what_is_there_twice_or_missing_is_said() {
    let cache = json!({"upstream": "docker.io", "serviceNameSuffix": "a"});
    let mistakes = |documents: &[Value]| {
        let mistakes = Objects::read(documents).unwrap_err();
        mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    let twice = mistakes(&[registry(&[cache.clone(), cache.clone()])]);
    assert!(twice.contains("caches[1].upstream: `docker.io` is there already"), "{twice}");
    assert!(twice.contains("caches[1].serviceNameSuffix: `a` is there already"), "{twice}");
    let mirror = json!({"upstream": "docker.io", "hosts": [{"host": "https://m"}]});
    let both = mistakes(&[registry(&[cache]), mirrors(&[mirror])]);
    assert!(both.contains("mirrors[0].upstream: `docker.io` has a cache"), "{both}");
    assert!(mistakes(&[registry(&[])]).contains("caches: must have at least one cache"));
    assert!(mistakes(&[mirrors(&[])]).contains("mirrors: must have at least one mirror"));
    let other = json!({"apiVersion": "v1", "kind": "Pod"});
    assert!(mistakes(&[other]).contains("`v1` `Pod` is none of Gardener's"));
}

#[test]
fn versions_have_their_fields_and_no_others() {
    let of = |version: &str, cache: Value| {
        let mut config = registry(&[cache]);
        config["apiVersion"] = format!("registry.extensions.gardener.cloud/{version}").into();
        Objects::read(&[config])
    };
    let only = |version: &str, cache: Value| {
        let imported = import(&of(version, cache).unwrap(), "larder");
        imported.caches[0].spec.clone()
    };
    let old =
        json!({"upstream": "quay.io", "size": "20Gi", "garbageCollection": {"enabled": false}});
    let spec = only("v1alpha1", old.clone());
    assert_eq!(spec.volume.unwrap().size.unwrap().0, "20Gi");
    assert_eq!(spec.upstreams[0].ttl.as_deref(), Some("0s"));
    let newer = json!({"upstream": "quay.io", "volume": {"size": "5Gi"}, "garbageCollection": {"enabled": true}});
    let spec = only("v1alpha2", newer);
    assert_eq!(spec.upstreams[0].ttl.as_deref(), Some("168h"));
    let mistakes = of("v1alpha3", old).unwrap_err();
    assert_eq!(mistakes[0].to_string(), "caches[0].size: v1alpha3 has no such field; v1alpha1 has");
    assert_eq!(mistakes.len(), 2);
    let mistakes = of("v1beta1", json!({"upstream": "quay.io"})).unwrap_err();
    assert!(mistakes[0].message.contains("`v1beta1` is not known"));
}

#[test]
fn caches_that_differ_in_size_alone_become_one() {
    let text = r#"
apiVersion: core.gardener.cloud/v1beta1
kind: Shoot
spec:
  extensions:
  - type: registry-cache
    providerConfig:
      apiVersion: registry.extensions.gardener.cloud/v1alpha3
      kind: RegistryConfig
      caches:
      - upstream: docker.io
        volume: {size: 100Gi}
        secretReferenceName: hub
      - upstream: ghcr.io
        garbageCollection: {ttl: 0s}
      - upstream: quay.io
        remoteURL: https://quay.example.com
        http: {tls: false}
        proxy: {httpsProxy: "http://proxy.example.com:3128"}
  - type: registry-mirror
    providerConfig:
      apiVersion: mirror.extensions.gardener.cloud/v1alpha1
      kind: MirrorConfig
      mirrors:
      - upstream: gcr.io
        hosts: [{host: "https://mirror.gcr.io", capabilities: [pull, resolve]}]
  resources:
  - name: hub
    resourceRef: {kind: Secret, name: hub-login-1, apiVersion: v1}
"#;
    let imported = import(&Objects::read(&documents(text).unwrap()).unwrap(), "larder");
    let [one, other] = &imported.caches[..] else { panic!("{:?}", imported.caches) };
    let names: Vec<&str> = one.spec.upstreams.iter().map(|it| it.upstream.as_str()).collect();
    assert_eq!(names, ["docker.io", "ghcr.io", "gcr.io"]);
    assert_eq!(one.spec.volume.as_ref().unwrap().size.as_ref().unwrap().0, "110Gi");
    let hub = &one.spec.upstreams[0];
    assert_eq!(hub.secret_ref.as_ref().unwrap().name, "hub-login-1");
    assert_eq!(hub.quota.as_ref().unwrap().0, "100Gi");
    assert_eq!(one.spec.upstreams[1].ttl.as_deref(), Some("0s"));
    assert_eq!(one.spec.upstreams[2].mirrors, ["https://mirror.gcr.io"]);
    assert_eq!(other.spec.http.as_ref().unwrap().tls, Some(false));
    assert_eq!(other.spec.upstreams[0].quota, None);
    assert!(imported.notes.iter().any(|note| note.contains("copy the secret `hub-login-1`")));

    let missing = text.replace("name: hub\n", "name: another\n");
    let mistakes = Objects::read(&documents(&missing).unwrap()).unwrap_err();
    assert!(mistakes[0].message.contains("no Secret called `hub`"), "{mistakes:?}");
}

#[test]
fn what_becomes_of_them_is_what_the_schema_allows() {
    let caches = [
        json!({"upstream": "docker.io", "highAvailability": {"enabled": true}}),
        json!({"upstream": "registry.example.com:5000", "remoteURL": "http://[::1]:5000/"}),
    ];
    let objects = Objects::read(&[registry(&caches)]).unwrap();
    for cache in import(&objects, "larder").caches {
        let errors = cache.validate_cel();
        assert!(errors.is_ok(), "{errors:?}");
    }
}

fn registry(caches: &[Value]) -> Value {
    json!({
        "apiVersion": "registry.extensions.gardener.cloud/v1alpha3",
        "kind": "RegistryConfig",
        "caches": caches,
    })
}

fn mirrors(mirrors: &[Value]) -> Value {
    json!({
        "apiVersion": "mirror.extensions.gardener.cloud/v1alpha1",
        "kind": "MirrorConfig",
        "mirrors": mirrors,
    })
}
