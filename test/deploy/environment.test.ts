/**
 * Every variable and command line in deploy/ is one that the code knows, with values that it takes, and to some effect.
 */
import {once} from 'node:events';
import {createServer, type AddressInfo} from 'node:net';
import test from 'ava';
import type {Container} from 'kubernetes-types/core/v1.js';
import {parseArguments} from '../../src/cli/arguments.ts';
import {commands, type CommandDescription} from '../../src/cli/commands.ts';
import {ConfigError, loadConfig, loadSettings} from '../../src/config/config.ts';
import {serveProbes} from '../../src/health/probes.ts';
import {Secret} from '../../src/core/log.ts';
import {settings, type Setting} from '../../src/config/settings.ts';
import {recordingLog} from '../support/recording-log.ts';
import {build, containersOf, overlays, samples, workloads, type Manifest} from './manifests.ts';
import {nameOf} from './types.ts';

type Environment = Readonly<Record<string, string>>;

const serviceAccountToken = new Secret(
	[
		'e30',
		Buffer.from(JSON.stringify({'kubernetes.io': {serviceaccount: {uid: 'uid'}}})).toString('base64url'),
		's',
	].join('.'),
);
const host = {hostname: 'worker-0', serviceAccountToken};
const table: Readonly<Record<string, CommandDescription>> = commands;
/** Those of all commands: peer-pods-cm is for several. */
const known = new Map(Object.values(table).flatMap(({settings: own = {}}) => namesOf(Object.values(own))));

function namesOf(own: readonly Setting[]): Array<[name: string, setting: Setting]> {
	return own.flatMap(setting =>
		[setting.env, ...(setting.alias === undefined ? [] : [setting.alias])].map((name): [string, Setting] => [
			name,
			setting,
		]),
	);
}

/** As kubelet makes it: envFrom in order, the later wins, then env. What the downward API gives is the field's path. */
function environmentOf({envFrom = [], env = []}: Container, manifests: readonly Manifest[]): Environment {
	const sources = envFrom.map(({secretRef, configMapRef}) => {
		const name =
			secretRef === undefined ? `ConfigMap ${configMapRef?.name ?? ''}` : `Secret ${secretRef.name ?? ''}`;
		const source = manifests.find(each => nameOf(each) === name) as
			{data?: Environment; stringData?: Environment} | undefined;
		return {...source?.data, ...source?.stringData};
	});
	return Object.assign(
		{},
		...sources,
		Object.fromEntries(
			env.map(({name, value, valueFrom}) => [name, value ?? valueFrom?.fieldRef?.fieldPath ?? '']),
		),
	) as Environment;
}

async function daemon(): Promise<Container> {
	const [container] = workloads(await build('overlays/openshift'))
		.filter(({kind}) => kind === 'DaemonSet')
		.flatMap(containersOf);
	if (container === undefined) {
		throw new Error('The DaemonSet has no container');
	}

	return container;
}

/** What is wrong with the command line and the environment, one line each. */
function complaints(
	{command = [], args = [], env: own = []}: Container,
	{HOME: _, NODE_OPTIONS: __, ...env}: Environment,
): readonly string[] {
	// The image's entrypoint is for the daemon.
	const words = command[0] === '/usr/local/bin/entrypoint.sh' ? ['libvirt', ...args] : [...command.slice(1), ...args];
	try {
		const parsed = parseArguments(words);
		const {settings: ofCommand = {}} = table[parsed.command] ?? {};
		if (!('flags' in parsed)) {
			return [`${words.join(' ')} serves nothing`];
		}

		const warnings = parsed.command === 'libvirt' ? loadConfig(env, host, parsed.flags).warnings : [];
		loadSettings(ofCommand, env, host, parsed.flags);
		const read = new Map(namesOf(Object.values(ofCommand)));
		return [
			...Object.keys(env)
				.filter(name => !known.has(name))
				.map(name => `${name} is no setting`),
			...own
				.map(({name}) => name)
				.filter(name => !['HOME', 'NODE_OPTIONS'].includes(name) && !read.has(name))
				.map(name => `${name} is not read by ${parsed.command}`),
			// What is announced and not in effect yet is no mistake of a manifest.
			...warnings.map(({name, reason}) => `${name}: ${reason}`),
		];
	} catch (error) {
		if (error instanceof ConfigError) {
			return error.problems.map(({name, text}) => `${name} ${text}`);
		}

		return [String(error)];
	}
}

for (const overlay of overlays.filter(name => name !== 'operator' && !name.startsWith('monitoring-'))) {
	test(`overlay ${overlay}: with the samples, every container starts without a complaint or a warning`, async t => {
		const containers = workloads(await build(`overlays/${overlay}`)).flatMap(containersOf);
		t.true(containers.length > 0);
		for (const container of containers) {
			t.regex(container.command?.[0] ?? '', /^\/usr\/local\/bin\/(?:entrypoint\.sh|cloud-api-adaptor)$/v);
			t.deepEqual(complaints(container, environmentOf(container, samples())), [], container.name);
		}
	});
}

test('the daemon has what the sample config map and secret say', async t => {
	const env = environmentOf(await daemon(), samples());
	t.like(loadConfig(env, host), {
		clusterId: 'my-cluster',
		nodeName: 'spec.nodeName',
		vxlanPort: 9000,
		limitPerNode: 10,
		maxVcpus: 16,
		libvirtUri: {transport: 'ssh', host: 'kvm.example.com'},
	});
});

test('unknown variables, invalid values, settings without effect and wrong command lines are found', async t => {
	const container = await daemon();
	const env = environmentOf(container, samples());
	t.deepEqual(complaints(container, {...env, LIBVIRT_IMAGE: 'x'}), [
		'LIBVIRT_IMAGE is no setting',
		'LIBVIRT_IMAGE: has no effect: there is no such setting',
	]);
	t.regex(complaints(container, {...env, LIBVIRT_CPU: '2 CPUs'}).join('\n'), /^LIBVIRT_CPU/v);
	t.regex(
		complaints(container, {...env, LIBVIRT_EFI_FIRMWARE: '/edk2'}).join('\n'),
		/LIBVIRT_EFI_FIRMWARE: has no effect/v,
	);
	t.regex(complaints({...container, args: ['-cpus=2']}, env).join('\n'), /no flag -cpus/v);
	t.regex(
		complaints({...container, command: ['/usr/local/bin/cloud-api-adaptor'], args: ['web-hook']}, env).join('\n'),
		/no command "web-hook"/v,
	);
	t.deepEqual(
		complaints(
			{
				...container,
				command: ['/usr/local/bin/cloud-api-adaptor'],
				args: ['webhook'],
				env: [{name: 'LIBVIRT_POOL', value: 'x'}],
			},
			{},
		),
		['LIBVIRT_POOL is not read by webhook'],
	);
});

/**
 * OpenShift sandboxed containers 1.10, "Deploying on IBM Z and IBM LinuxONE": peer pods secret and config map, their
 * placeholders filled in.
 */
const documented: Environment = {
	CLOUD_PROVIDER: 'libvirt',
	LIBVIRT_URI: 'qemu+ssh://root@192.168.122.1/system?no_verify=1',
	LIBVIRT_POOL: 'pool',
	LIBVIRT_VOL_NAME: 'volume',
	LIBVIRT_DIR_NAME: '/var/lib/libvirt/images/directory',
	LIBVIRT_NET: 'default',
	PEERPODS_LIMIT_PER_NODE: '10',
	ROOT_VOLUME_SIZE: '6',
	DISABLECVM: 'true',
};

test('every setting of the product documentation is known, and settings without effect cause a warning', async t => {
	const complained = complaints(await daemon(), {...documented, NODE_NAME: 'worker-0', POD_UID: 'uid'});
	t.deepEqual(
		complained
			.map(line => line.split(':', 1)[0])
			.filter(name => name !== 'LIBVIRT_DIR_NAME' && name !== 'LIBVIRT_URI'),
		[],
	);
	t.like(loadConfig(documented, host), {rootDiskGib: 6, limitPerNode: 10});
});

test('the mounts of the manifests match the default paths of the daemon', async t => {
	const mounts = new Map((await daemon()).volumeMounts?.map(({mountPath, name}) => [mountPath, name]));
	const {socketPath, podsDir} = loadConfig({}, host);
	for (const path of [socketPath, podsDir]) {
		t.true(
			[...mounts].some(([mountPath, name]) => name === 'pods-dir' && path.startsWith(`${mountPath}/`)),
			path,
		);
	}

	for (const {example = ''} of [settings.caCertFile, settings.certFile, settings.certKeyFile]) {
		t.true(
			[...mounts].some(([mountPath, name]) => name === 'certificates' && example.startsWith(`${mountPath}/`)),
			example,
		);
	}
});

test('kubelet probes the daemon where it answers', async t => {
	const {startupProbe, livenessProbe} = await daemon();
	const blocker = createServer().listen(0, '127.0.0.1');
	await once(blocker, 'listening');
	const {port} = blocker.address() as AddressInfo;
	const log = recordingLog();
	await using _probes = serveProbes({port, assertHealthy: async () => undefined, log, retryMs: [1, 1]});
	blocker.close();
	while (!log.lines.some(({message}) => message === 'probes are served')) {
		await new Promise(resolve => setImmediate(resolve));
	}

	for (const {host: address, path = '', port: where} of [startupProbe, livenessProbe].map(
		probe => probe?.httpGet ?? {port: 0},
	)) {
		t.deepEqual([address, where], ['127.0.0.1', loadConfig({}, host).probePort]);
		t.is((await fetch(`http://127.0.0.1:${port}${path}`)).status, 200);
	}
});
