use super::*;
use crate::Problem;

fn sources(text: Option<&str>, env: &[(&str, &str)]) -> (Sources, PathBuf) {
    let dir = std::env::temp_dir().join(format!("modelmeter-config-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir(&dir).unwrap();
    if let Some(text) = text {
        std::fs::write(dir.join(FILE), text).unwrap();
    }
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    (Sources { file: None, home: None, cwd: dir.clone(), env }, dir)
}

fn load_from(text: Option<&str>, env: &[(&str, &str)]) -> Result<Config, Problem> {
    let (sources, dir) = sources(text, env);
    let loaded = load(&sources);
    std::fs::remove_dir_all(dir).unwrap();
    loaded
}

#[test]
fn the_environment_beats_the_file_beats_the_defaults() {
    let file = "home = '/h'\n[coordinator]\nlisten = '127.0.0.1:1'\nbroker = 'amqp://file'\n";
    let env = [("MODELMETER_COORDINATOR_BROKER", "amqp://env"), ("MODELMETER_WORKER_CPU_SLOTS", "3")];
    let config = load_from(Some(file), &env).unwrap();
    assert_eq!(config.home, PathBuf::from("/h"));
    assert_eq!(config.coordinator.listen, "127.0.0.1:1");
    assert_eq!(config.coordinator.broker.as_deref(), Some("amqp://env"));
    assert_eq!(config.coordinator.http, Coordinator::default().http);
    assert_eq!(config.worker.cpu_slots, 3);
}

#[test]
fn home_falls_back_to_the_users_data_directory() {
    let home = |env: &[(&str, &str)]| load_from(None, env).map(|c| c.home);
    assert_eq!(home(&[("HOME", "/u")]).unwrap(), PathBuf::from("/u/.local/share/modelmeter"));
    assert_eq!(home(&[("HOME", "/u"), ("XDG_DATA_HOME", "/d")]).unwrap(), PathBuf::from("/d/modelmeter"));
    assert_eq!(home(&[("HOME", "/u"), ("MODELMETER_HOME", "/m")]).unwrap(), PathBuf::from("/m"));
    assert_eq!(home(&[]).unwrap_err().field.as_deref(), Some("home"));
}

#[test]
fn an_unknown_key_is_named_with_its_file() {
    let error = load_from(Some("home = '/h'\n[coordinator]\nlisten_on = 'x'\n"), &[]).unwrap_err();
    assert!(error.message.contains("listen_on") && error.message.contains("modelmeter.toml, line 3"), "{error}");
}

#[test]
fn a_bad_variable_is_named() {
    let error = load_from(None, &[("HOME", "/u"), ("MODELMETER_WORKER_CPU_SLOTS", "two")]).unwrap_err();
    assert_eq!(error.field.as_deref(), Some("MODELMETER_WORKER_CPU_SLOTS"));
    let error = load_from(None, &[("HOME", "/u"), ("MODELMETER_WORKER_PORTS", "some")]).unwrap_err();
    assert!(error.message.contains("some"), "{error}");
    let env = ["MODELMETER_HUB", "MODELMETER_HOME", "MODELMETER_CONFIG", "MODELMETER_TEST_MONGOD", "PATH"];
    let env = env.map(|name| (name.to_owned(), String::new())).into();
    assert_eq!(unknown_variables(&env), ["MODELMETER_HUB"]);
}

#[test]
fn a_dump_hides_passwords_and_reads_back() {
    let mut config = Config { home: "/h".into(), ..Config::default() };
    config.coordinator.broker = Some("amqp://bob:s3cret@host:5672/%2f".into());
    config.coordinator.hub = Some("mongodb://bob:s3@cret@a,b/modelmeter?x=1".into());
    let env = || BTreeMap::from([("HF_TOKEN".to_owned(), "s3cret".to_owned())]);
    config.engines.insert("mine".into(), CustomEngine { env: env(), ..CustomEngine::default() });
    config.inspectors.insert("mine".into(), CustomInspector { env: env(), ..CustomInspector::default() });
    let dump = config.dump();
    assert!(!dump.contains("s3") && dump.matches("HF_TOKEN = \"***\"").count() == 2, "{dump}");
    assert!(dump.contains("amqp://***@host:5672/%2f") && dump.contains("mongodb://***@a,b/modelmeter"));
    assert!(toml::from_str::<Config>(&dump).is_ok());
}

#[test]
fn cores_are_numbers_and_ranges() {
    assert_eq!(cpus("client_cpus", "6, 0-2,1").unwrap(), [0, 1, 2, 6]);
    for text in ["", "a", "3-1", "1-", "-1", "0,,1", "1024", "0-4294967295"] {
        let problem = cpus("client_cpus", text).unwrap_err();
        assert!(problem.field.as_deref() == Some("client_cpus") && problem.hint.is_some(), "{text}");
    }
}

#[test]
fn durations_have_units() {
    for (text, ms) in [("2s", 2_000), ("500ms", 500), ("2m", 120_000), ("1.5h", 5_400_000), ("1d", 86_400_000)] {
        assert_eq!(duration(text).unwrap(), Duration::from_millis(ms));
    }
    for text in ["", "2", "s", "2 weeks", "-2s", "1.2.3s"] {
        assert!(duration(text).is_err(), "{text}");
    }
}
