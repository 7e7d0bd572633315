import {createHash} from 'node:crypto';
import {readFileSync} from 'node:fs';
import test from 'ava';
import fc from 'fast-check';
import {configurationMarkdown} from '../../docs/generate-configuration.ts';
import {buildKeys} from '../../src/cli/image-settings.ts';
import {commands, type CommandDescription} from '../../src/cli/commands.ts';
import {
	ConfigError,
	exampleOf,
	inertWarnings,
	loadConfig,
	loadSettings,
	serviceAccountUid,
	type Config,
} from '../../src/config/config.ts';
import {AdaptorError} from '../../src/core/errors.ts';
import {Secret} from '../../src/core/log.ts';
import {parseGoDuration} from '../../src/config/setting-types.ts';
import {inertSettings, sections, settings, type Setting} from '../../src/config/settings.ts';
import {webhookSettings} from '../../src/cli/webhook-settings.ts';

const host = {
	hostname: 'worker-0',
	serviceAccountToken: tokenWith({'kubernetes.io': {serviceaccount: {name: 'default', uid: '0b9a-uid'}}}),
};
const all: readonly Setting[] = Object.values(settings);
/** Of all commands, each once: several may share one. */
const ofEveryCommand = [
	...new Set(
		Object.values<CommandDescription>(commands).flatMap(({settings: own = {}}) => Object.values<Setting>(own)),
	),
];

function tokenWith(claims: unknown): Secret<string> {
	return new Secret(['e30', Buffer.from(JSON.stringify(claims)).toString('base64url'), 'signature'].join('.'));
}

function load(env: Record<string, string | undefined>, flags: Record<string, string> = {}): Config {
	return loadConfig(env, host, flags);
}

function problemsOf(
	env: Record<string, string | undefined>,
	flags: Record<string, string> = {},
): Record<string, string> {
	try {
		load(env, flags);
	} catch (error) {
		if (error instanceof ConfigError) {
			return Object.fromEntries(error.problems.map(({name, text}) => [name, text]));
		}

		throw error;
	}

	return {};
}

test('an empty environment gives the defaults of upstream', t => {
	const config = load({});
	t.like(config, {
		cloudProvider: 'libvirt',
		pool: 'default',
		network: 'default',
		baseVolume: 'podvm-base.qcow2',
		confidential: false,
		vcpus: 2,
		memoryMib: 8192,
		rootDiskGib: 10,
		cpuset: undefined,
		socketPath: '/run/peerpod/hypervisor.sock',
		podsDir: '/run/peerpod/pods',
		forwarderPort: 15_150,
		proxyTimeoutMs: 300_000,
		startTimeoutMs: 210_000,
		tlsSkipVerify: false,
		tunnelType: 'vxlan',
		vxlanPort: 4789,
		customCa: undefined,
		nodeName: 'worker-0',
		clusterId: '0b9a-uid',
		warnings: [],
	});
	t.is(config.libvirtUri.text, 'qemu+ssh://root@192.168.122.1/system?no_verify=1');
});

test('probes use port 8000 in a pod, no port elsewhere, and PROBE_PORT if it is set', t => {
	t.is(load({}).probePort, 8000);
	t.is(loadConfig({CLUSTER_ID: 'east'}, {hostname: 'h'}).probePort, undefined);
	t.is(loadConfig({CLUSTER_ID: 'east', PROBE_PORT: '8001'}, {hostname: 'h'}).probePort, 8001);
});

test('every setting that is given reaches the config', t => {
	const config = load({
		LIBVIRT_URI: 'qemu+ssh://kvm@host:2222/system?keyfile=/root/.ssh/id_rsa',
		LIBVIRT_LAUNCH_SECURITY: 's390-pv',
		DISABLECVM: 'false',
		LIBVIRT_CPU: '4',
		LIBVIRT_MEMORY: '7168',
		LIBVIRT_MIN_CPU: '2',
		LIBVIRT_MAX_CPU: '16',
		LIBVIRT_SWIOTLB_MEMORY: '64',
		LIBVIRT_ALLOWED_IMAGES: 'a*, b?.raw',
		LIBVIRT_MIN_MEMORY: '512',
		LIBVIRT_MAX_MEMORY: '65536',
		LIBVIRT_CPUSET: '0-7, ^4, 8',
		PROXY_TIMEOUT: '1h30m',
		TLS_MIN_VERSION: 'VersionTLS12',
		TLS_CIPHER_SUITES: 'TLS_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256',
		CACERT_FILE: '/c/ca.crt',
		CERT_FILE: '/c/client.crt',
		CERT_KEY: '/c/client.key',
		VXLAN_PORT: '9000',
		HOST_INTERFACE: 'enc1',
		EXTERNAL_NETWORK_VIA_PODVM: 'TRUE',
		POD_SUBNET_CIDRS: '10.128.0.0/14, 172.30.0.0/16',
		NODE_NAME: 'node-7',
		POD_UID: 'uid-1',
		CLUSTER_ID: 'east',
		LOG_LEVEL: 'debug',
		LOG_FORMAT: 'pretty',
	});
	t.like(config, {
		confidential: true,
		vcpus: 4,
		memoryMib: 7168,
		minVcpus: 2,
		maxVcpus: 16,
		swiotlbMib: 64,
		allowedImages: ['a*', 'b?.raw'],
		minMemoryMib: 512,
		maxMemoryMib: 65_536,
		cpuset: '0-7,^4,8',
		proxyTimeoutMs: 5_400_000,
		tlsMinVersion: 'VersionTLS12',
		tlsCipherSuites: ['TLS_AES_128_GCM_SHA256', 'TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256'],
		customCa: {caFile: '/c/ca.crt', certFile: '/c/client.crt', keyFile: '/c/client.key'},
		vxlanPort: 9000,
		hostInterface: 'enc1',
		externalNetworkViaPodVm: true,
		podSubnetCidrs: ['10.128.0.0/14', '172.30.0.0/16'],
		nodeName: 'node-7',
		podUid: 'uid-1',
		clusterId: 'east',
		logLevel: 'debug',
		logFormat: 'pretty',
	});
	t.like(config.libvirtUri, {transport: 'ssh', user: 'kvm', host: 'host', port: 2222, keyfile: '/root/.ssh/id_rsa'});
});

test('every default and every example is valid, and each setting without a default has an example', t => {
	for (const setting of ofEveryCommand) {
		t.not(exampleOf(setting), '', setting.env);
		t.not(setting.type.parse(exampleOf(setting)), undefined, setting.env);
		if (setting.default !== undefined) {
			t.not(setting.type.parse(setting.default), undefined, setting.env);
		}
	}
});

test('names of variables and flags are unique, and no section is empty', t => {
	// What means nothing to one command may mean something to another.
	for (const table of [ofEveryCommand, [...all, ...inertSettings]]) {
		const names = table.flatMap(({env, flag}) => (flag === undefined ? [env] : [env, flag]));
		t.deepEqual(names, [...new Set(names)]);
	}

	t.deepEqual([...new Set(ofEveryCommand.map(({section}) => section))].toSorted(), [...sections].toSorted());
});

test('an empty or blank value counts as not set', t => {
	const blank = Object.fromEntries(
		[...all, ...inertSettings].map(({env}, index) => [env, index % 2 === 0 ? '' : ' \n']),
	);
	t.deepEqual(load(blank, {cpu: ''}), load({}));
});

test('a variable is known by its other name too, and the two may not contradict each other', t => {
	const runtimeClass = (env: Record<string, string>): string =>
		loadSettings(webhookSettings, env, host).targetRuntimeClass;
	t.is(runtimeClass({}), 'kata-remote');
	t.is(runtimeClass({TARGET_RUNTIMECLASS: 'a'}), 'a');
	t.is(runtimeClass({TARGET_RUNTIME_CLASS: 'b', TARGET_RUNTIMECLASS: ' '}), 'b');
	t.is(runtimeClass({TARGET_RUNTIME_CLASS: 'c', TARGET_RUNTIMECLASS: 'c'}), 'c');
	const error = t.throws(() => runtimeClass({TARGET_RUNTIME_CLASS: 'd', TARGET_RUNTIMECLASS: 'e'}), {
		instanceOf: ConfigError,
	});
	t.deepEqual(
		error.problems.map(({name}) => name),
		['TARGET_RUNTIMECLASS'],
	);
	t.deepEqual(
		t
			.throws(() => runtimeClass({TARGET_RUNTIME_CLASS: 'No!'}), {instanceOf: ConfigError})
			.problems.map(({name}) => name),
		['TARGET_RUNTIME_CLASS'],
	);
});

test('white space around a value is dropped', t => {
	t.is(load({LIBVIRT_POOL: ' pods\n'}).pool, 'pods');
});

test('a flag wins over its variable', t => {
	t.is(load({LIBVIRT_CPU: '4'}, {cpu: '8'}).vcpus, 8);
	t.is(load({LIBVIRT_CPU: 'four'}, {cpu: '8'}).vcpus, 8);
});

test('one error lists every problem, with the name, what it got and an example', t => {
	const error = t.throws(
		() => load({LIBVIRT_CPU: 'zwei', PROXY_TIMEOUT: '5', TLS_MIN_VERSION: 'VersionTLS11'}, {memory: 'much'}),
		{instanceOf: ConfigError},
	);
	t.is(error.code, 'invalid-argument');
	t.deepEqual(
		error.problems.map(({name}) => name),
		['LIBVIRT_CPU', '-memory', 'PROXY_TIMEOUT', 'TLS_MIN_VERSION'],
	);
	t.regex(error.message, /LIBVIRT_CPU is "zwei"; expected a whole number from 1 to 248; for example LIBVIRT_CPU=2/v);
	t.regex(error.message, /-memory is "much".*-memory=8192/v);
});

const refusals: ReadonlyArray<readonly [string, string]> = [
	['CLOUD_PROVIDER', 'aws'],
	['LIBVIRT_URI', 'xen:///'],
	['LIBVIRT_URI', 'qemu+ssh://root@h/system?no_verfy=1'],
	['LIBVIRT_POOL', '../etc'],
	['LIBVIRT_VOL_NAME', '..'],
	['LIBVIRT_CPU', '0'],
	['LIBVIRT_CPU', '1.5'],
	['LIBVIRT_CPU', '-1'],
	['LIBVIRT_CPU', '249'],
	['LIBVIRT_MEMORY', '8Gi'],
	['LIBVIRT_MEMORY', '1e3'],
	['LIBVIRT_CPUSET', '3-1'],
	['LIBVIRT_CPUSET', '1,,2'],
	['LIBVIRT_CPUSET', 'all'],
	['LIBVIRT_CPUSET', '0-16384'],
	['LIBVIRT_CPUSET', '1,^1'],
	['LIBVIRT_CPUSET', '0-7,^2-3'],
	['LIBVIRT_ALLOWED_IMAGES', 'a,,b'],
	['LIBVIRT_ALLOWED_IMAGES', '/etc/*'],
	['LIBVIRT_SWIOTLB_MEMORY', '-1'],
	['LIBVIRT_MIN_CPU', '3'],
	['DISABLECVM', 'yes'],
	['FORWARDER_PORT', '65536'],
	['VXLAN_PORT', '0'],
	['VXLAN_MIN_ID', '16777216'],
	['TUNNEL_TYPE', 'routing'],
	['PODS_DIR', 'pods'],
	['PODS_DIR', `/${'p'.repeat(30)}`],
	['REMOTE_HYPERVISOR_ENDPOINT', `/${'s'.repeat(107)}`],
	['PROXY_TIMEOUT', '-5m'],
	['PROXY_TIMEOUT', '0'],
	['START_TIMEOUT', '25h'],
	['TLS_MIN_VERSION', 'VersionTLS10'],
	['TLS_CIPHER_SUITES', 'AES128-SHA'],
	['HOST_INTERFACE', 'a-name-of-16-byt'],
	['POD_SUBNET_CIDRS', '10.0.0.0'],
	['POD_SUBNET_CIDRS', '10.0.0.0/33'],
	['POD_SUBNET_CIDRS', '10.0.0.256/8'],
	['LOG_LEVEL', 'verbose'],
	['LOG_FORMAT', 'xml'],
	['CLUSTER_ID', 'a b'],
	['NODE_NAME', 'a"b'],
	['LIBVIRT_LAUNCH_SECURITY', 'tdx'],
];
for (const [name, value] of refusals) {
	test(`${name}=${value} is refused`, t => {
		t.deepEqual(Object.keys(problemsOf({[name]: value})), [name]);
	});
}

test('initdata is checked, kept to the last byte, and never repeated', t => {
	const document = 'algorithm = "sha256"\nversion = "0.1.0"\n[data]\n';
	t.is(load({INITDATA: document}).initdata?.digest, `sha256:${createHash('sha256').update(document).digest('hex')}`);
	t.is(load({INITDATA: ' \n'}).initdata, undefined);
	const {INITDATA: problem = ''} = problemsOf({INITDATA: 'algorithm = "hunter2"'});
	t.regex(problem, /is refused: The initdata has no version.*for example INITDATA=H4sI/);
	t.false(problem.includes('hunter2'));
});

test('a password in the URI is refused and never repeated', t => {
	const error = t.throws(() => load({LIBVIRT_URI: 'qemu+ssh://root:hunter2@host/system'}), {instanceOf: ConfigError});
	t.false(error.message.includes('hunter2'));
});

test('a long value is cut in the message', t => {
	t.true(String(problemsOf({LIBVIRT_CPU: 'x'.repeat(10_000)})['LIBVIRT_CPU']).length < 250);
});

test("some but not all of the custom CA's files is refused, naming those that are missing", t => {
	t.deepEqual(Object.keys(problemsOf({CERT_KEY: '/k'})), ['CACERT_FILE', 'CERT_FILE']);
	t.deepEqual(Object.keys(problemsOf({CACERT_FILE: '/ca'}, {'cert-file': '/c'})), ['CERT_KEY']);
});

test('requesting confidential VMs and turning them off at the same time is refused', t => {
	t.deepEqual(Object.keys(problemsOf({LIBVIRT_LAUNCH_SECURITY: 's390-pv', DISABLECVM: 'true'})), [
		'LIBVIRT_LAUNCH_SECURITY',
	]);
	t.true(load({LIBVIRT_LAUNCH_SECURITY: 's390-pv'}).confidential);
	t.true(load({LIBVIRT_LAUNCH_SECURITY: 's390-pv', DISABLECVM: 'false'}).confidential);
});

test('cipher suites together with TLS 1.3 are refused', t => {
	t.deepEqual(
		Object.keys(problemsOf({TLS_MIN_VERSION: 'VersionTLS13', TLS_CIPHER_SUITES: 'TLS_AES_128_GCM_SHA256'})),
		['TLS_CIPHER_SUITES'],
	);
	t.is(load({TLS_MIN_VERSION: 'VersionTLS13'}).tlsMinVersion, 'VersionTLS13');
});

test("sizes must lie within the administrator's limits", t => {
	t.deepEqual(Object.keys(problemsOf({LIBVIRT_CPU: '8', LIBVIRT_MAX_CPU: '4'})), ['LIBVIRT_CPU']);
	t.deepEqual(Object.keys(problemsOf({LIBVIRT_MIN_MEMORY: '9000'})), ['LIBVIRT_MIN_MEMORY']);
	t.deepEqual(Object.keys(problemsOf({LIBVIRT_MAX_MEMORY: '4096'})), ['LIBVIRT_MEMORY']);
	t.is(load({LIBVIRT_CPU: '8', LIBVIRT_MAX_CPU: '8'}).vcpus, 8);
	t.like(load({LIBVIRT_CPU: '64', LIBVIRT_MEMORY: '131072'}), {maxVcpus: 64, maxMemoryMib: 131_072});
	t.like(load({}), {maxVcpus: 32, maxMemoryMib: 65_536});
});

test('the default minimum of memory gives way to a smaller LIBVIRT_MEMORY', t => {
	t.is(load({LIBVIRT_MEMORY: '512'}).minMemoryMib, 512);
	t.is(load({}).minMemoryMib, 1024);
});

test('a setting without effect is accepted, whatever it holds, and warned about', t => {
	const env = {PAUSE_IMAGE: 'secret', SECURE_COMMS: 'true', POD_UID: 'u', PROBE_PORT: '8000'};
	const {warnings} = load(env, {'data-dir': '/opt/data-dir'});
	t.deepEqual(
		warnings.map(({name}) => name),
		['-data-dir', 'PAUSE_IMAGE', 'SECURE_COMMS'],
	);
	t.false(JSON.stringify(warnings).includes('secret'));
});

test('EXTERNAL_NETWORK_VIA_PODVM is passed on with a warning: the VM has one network interface', t => {
	const config = load({EXTERNAL_NETWORK_VIA_PODVM: 'true'});
	t.true(config.externalNetworkViaPodVm);
	t.deepEqual(
		config.warnings.map(({name}) => name),
		['EXTERNAL_NETWORK_VIA_PODVM'],
	);
	t.deepEqual(load({EXTERNAL_NETWORK_VIA_PODVM: 'false'}).warnings, []);
});

test('a URI parameter without effect causes a warning', t => {
	t.deepEqual(
		load({LIBVIRT_URI: 'qemu+ssh://h/system?no_sanity=1'}).warnings.map(({name}) => name),
		['LIBVIRT_URI'],
	);
});

test('a mistyped variable of ours is warned about with the nearest setting, and never with its value', t => {
	const {warnings} = load({LIBVIRT_POLL: 'secret', PEERPODS_LIMIT: '7', VXLAN_PRT: '9000', LIBVIRT_COLOUR: 'blue'});
	t.deepEqual(
		warnings.map(({name, reason}) => `${name} ${reason}`),
		[
			'LIBVIRT_COLOUR has no effect: there is no such setting',
			'LIBVIRT_POLL has no effect: there is no such setting (did you mean LIBVIRT_POOL?)',
			'PEERPODS_LIMIT has no effect: there is no such setting (did you mean PEERPODS_LIMIT_PER_NODE?)',
			'VXLAN_PRT has no effect: there is no such setting (did you mean VXLAN_PORT?)',
		],
	);
});

test("the kubelet's variables of services and those of libvirt's client are no mistyped settings", t => {
	t.deepEqual(
		load({
			LIBVIRT_SERVICE_HOST: '10.96.0.7',
			LIBVIRT_SERVICE_PORT: '16509',
			LIBVIRT_SERVICE_PORT_TCP: '16509',
			LIBVIRT_PORT: 'tcp://10.96.0.7:16509',
			LIBVIRT_PORT_16509_TCP: 'tcp://10.96.0.7:16509',
			LIBVIRT_PORT_16509_TCP_ADDR: '10.96.0.7',
			LIBVIRT_LOG_OUTPUTS: '1:stderr',
			LIBVIRT_IMAGE_ID: 'podvm-base.qcow2',
			LIBVIRT_POL: '',
		}).warnings,
		[],
	);
});

test("each of the image builder's ten keys is named with what it is for and why it does nothing", t => {
	const env = Object.fromEntries(buildKeys.map(({env: name}) => [name, 'yes']));
	t.is(buildKeys.length, 10);
	const warnings = inertWarnings(buildKeys, env);
	t.deepEqual(
		warnings.map(({name}) => name),
		Object.keys(env),
	);
	t.is(new Set(warnings.map(({reason}) => reason)).size, 10);
	t.deepEqual(inertWarnings(buildKeys, {SE_BOOT: 'No', DOWNLOAD_SOURCES: 'no', ORG_ID: ''}), []);
});

test('variables of others are ignored', t => {
	t.deepEqual(load({PATH: '/bin', LIBVIRT_DEBUG: '1', KUBERNETES_SERVICE_HOST: '10.96.0.1'}), load({}));
});

test('without a cluster id and a service account, the daemon refuses to start', t => {
	const error = t.throws(() => loadConfig({}, {hostname: 'worker-0'}), {instanceOf: ConfigError});
	t.deepEqual(
		error.problems.map(({name}) => name),
		['CLUSTER_ID'],
	);
	t.is(loadConfig({CLUSTER_ID: 'lab'}, {hostname: 'worker-0'}).clusterId, 'lab');
});

test("the service account's UID is read from bound and from legacy tokens, and from nothing else", t => {
	t.is(serviceAccountUid(tokenWith({'kubernetes.io': {serviceaccount: {uid: 'bound'}}})), 'bound');
	t.is(serviceAccountUid(tokenWith({'kubernetes.io/serviceaccount/service-account.uid': 'legacy'})), 'legacy');
	for (const text of [
		'',
		'a.b.c',
		'no token',
		'e30.bnVsbA.x',
		`e30.${Buffer.from('{"kubernetes.io":{"serviceaccount":{"uid":7}}}').toString('base64url')}.x`,
	]) {
		t.is(serviceAccountUid(new Secret(text)), undefined);
	}
});

test('the config is frozen through and through', t => {
	const assertFrozen = (value: unknown): void => {
		if (typeof value === 'object' && value !== null) {
			t.true(Object.isFrozen(value));
			Object.values(value).forEach(assertFrozen);
		}
	};
	assertFrozen(
		load({
			LIBVIRT_URI: 'qemu+ssh://h/system?sshauth=agent',
			CACERT_FILE: '/a',
			CERT_FILE: '/b',
			CERT_KEY: '/c',
			PAUSE_IMAGE: 'p',
			POD_SUBNET_CIDRS: '10.0.0.0/8',
			TLS_CIPHER_SUITES: 'TLS_AES_128_GCM_SHA256',
			INITDATA: exampleOf(settings.initdata),
		}),
	);
});

test('any environment, flags and host give a config or a ConfigError', t => {
	const texts = fc.oneof(
		fc.string({unit: 'binary', maxLength: 40}),
		fc.constantFrom(...all.map(exampleOf)),
		fc.string({unit: fc.constantFrom(...'-+.,/:%@0189amshx'.split('')), maxLength: 24}),
		fc.tuple(fc.constantFrom(...all.map(exampleOf)), fc.string({maxLength: 3})).map(([text, tail]) => text + tail),
	);
	const named = (names: readonly string[]): fc.Arbitrary<Record<string, string>> =>
		fc.dictionary(fc.constantFrom(...names), texts);
	fc.assert(
		fc.property(
			named([...all, ...inertSettings].map(({env}) => env)),
			named([...all, ...inertSettings].map(({flag}) => flag ?? 'cpu')),
			texts,
			fc.option(texts, {nil: undefined}),
			(env, flags, hostname, token) => {
				try {
					loadConfig(
						env,
						{hostname, ...(token !== undefined && {serviceAccountToken: new Secret(token)})},
						flags,
					);
				} catch (error) {
					if (!(error instanceof ConfigError)) {
						throw error;
					}
				}
			},
		),
		{numRuns: 2000},
	);
	t.pass();
});

test('Go durations are read as Go reads them', t => {
	const cases: ReadonlyArray<readonly [string, number | undefined]> = [
		['5m', 300_000],
		['300s', 300_000],
		['1h30m', 5_400_000],
		['1.5h', 5_400_000],
		['100ms', 100],
		['.5s', 500],
		['1.s', 1000],
		['0', 0],
		['-1m', -60_000],
		['+2s', 2000],
		['1µs', 0.001],
		['1μs', 0.001],
		['1us', 0.001],
		['1ns', 0.000_001],
		['1m1m', 120_000],
		['1.1s', 1100],
		['', undefined],
		['5', undefined],
		['m', undefined],
		['.s', undefined],
		['5 m', undefined],
		['5M', undefined],
		['1d', undefined],
		['1e3s', undefined],
		['3000000h', undefined],
	];
	for (const [text, ms] of cases) {
		t.is(parseGoDuration(text), ms, text);
	}
});

test('a duration written as Go prints it is read back', t => {
	fc.assert(
		fc.property(fc.integer({min: 1, max: 86_400_000}), ms => {
			// Go, package time, Duration.String: 1h2m3.004s, and ms below a second.
			const [hours, minutes, seconds] = [
				Math.floor(ms / 3_600_000),
				Math.floor(ms / 60_000) % 60,
				(ms % 60_000) / 1000,
			];
			const text =
				ms < 1000
					? `${ms}ms`
					: `${hours > 0 ? `${hours}h` : ''}${ms >= 60_000 ? `${minutes}m` : ''}${seconds}s`;
			return parseGoDuration(text) === ms;
		}),
	);
	t.pass();
});

test('parsing a long hostile duration is fast', t => {
	t.is(parseGoDuration('1'.repeat(200_000)), undefined);
	t.is(parseGoDuration(`${'1s'.repeat(100_000)}x`), undefined);
});

test('docs/configuration.md matches the table of settings', t => {
	t.is(
		readFileSync(new URL('../../docs/configuration.md', import.meta.url), 'utf8'),
		configurationMarkdown(),
		'run: npm run docs',
	);
});

test('docs/configuration.md has every setting, and README.md links to it instead of containing a table', t => {
	const readme = readFileSync(new URL('../../README.md', import.meta.url), 'utf8');
	t.true(readme.includes('](docs/configuration.md)'));
	for (const {env} of all) {
		t.true(configurationMarkdown().includes(`\n| \`${env}\` |`), env);
		t.false(readme.includes(`| \`${env}\` |`), env);
	}
});

test('a ConfigError is an AdaptorError, so callers need to know no other', t => {
	t.true(new ConfigError([{name: 'A', text: 'is wrong'}]) instanceof AdaptorError);
});
