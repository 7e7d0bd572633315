/** Every variable in deploy/ is one that the code knows, with a value that it takes, and to some effect. */
import test from 'ava';
import type {Container} from 'kubernetes-types/core/v1.js';
import {ConfigError, loadConfig} from '../../src/config.ts';
import {Secret} from '../../src/log.ts';
import {settings, type Setting} from '../../src/settings.ts';
import {build, containersOf, samples, workloads, type Manifest} from './manifests.ts';
import {nameOf} from './types.ts';

type Environment = Readonly<Record<string, string>>;

const serviceAccountToken = new Secret(['e30', Buffer.from(JSON.stringify({'kubernetes.io': {serviceaccount: {uid: 'uid'}}})).toString('base64url'), 's'].join('.'));
const host = {hostname: 'worker-0', serviceAccountToken};
const known = new Map(Object.values<Setting>(settings).map(setting => [setting.env, setting]));

/** As kubelet makes it: envFrom in order, the later wins, then env. What the downward API gives is the field's path. */
function environmentOf({envFrom = [], env = []}: Container, manifests: readonly Manifest[]): Environment {
	const sources = envFrom.map(({secretRef, configMapRef}) => {
		const name = secretRef === undefined ? `ConfigMap ${configMapRef?.name ?? ''}` : `Secret ${secretRef.name ?? ''}`;
		const source = manifests.find(each => nameOf(each) === name) as {data?: Environment; stringData?: Environment} | undefined;
		return {...source?.data, ...source?.stringData};
	});
	return Object.assign({}, ...sources, Object.fromEntries(env.map(({name, value, valueFrom}) => [name, value ?? valueFrom?.fieldRef?.fieldPath ?? '']))) as Environment;
}

async function daemon(): Promise<Container> {
	const [container] = workloads(await build('overlays/openshift')).filter(({kind}) => kind === 'DaemonSet').flatMap(containersOf);
	if (container === undefined) {
		throw new Error('The DaemonSet has no container');
	}

	return container;
}

/** What is wrong with an environment, one line each. */
function complaints(env: Environment): readonly string[] {
	try {
		return [
			...Object.keys(env).filter(name => !known.has(name)).map(name => `${name} is no setting`),
			// What is announced and not in effect yet is no mistake of a manifest.
			...loadConfig(env, host).warnings.filter(({name}) => known.get(name)?.isPending !== true).map(({name, reason}) => `${name}: ${reason}`),
		];
	} catch (error) {
		if (error instanceof ConfigError) {
			return error.problems.map(({name, text}) => `${name} ${text}`);
		}

		throw error;
	}
}

test('the daemon with the sample config map and secret starts without a complaint or a warning, and has what they say', async t => {
	const env = environmentOf(await daemon(), samples());
	t.deepEqual(complaints(env), []);
	t.like(loadConfig(env, host), {clusterId: 'my-cluster', nodeName: 'spec.nodeName', vxlanPort: 9000, limitPerNode: 10, maxVcpus: 16, libvirtUri: {transport: 'ssh', host: 'kvm.example.com'}});
});

test('variables that nothing reads, values that cannot be understood and settings without effect are found', async t => {
	const env = environmentOf(await daemon(), samples());
	t.deepEqual(complaints({...env, LIBVIRT_IMAGE_ID: 'x'}), ['LIBVIRT_IMAGE_ID is no setting']);
	t.regex(complaints({...env, LIBVIRT_CPU: '2 CPUs'}).join('\n'), /^LIBVIRT_CPU/v);
	t.regex(complaints({...env, LIBVIRT_DIR_NAME: '/var/lib/libvirt/images'}).join('\n'), /LIBVIRT_DIR_NAME: has no effect/v);
});

test('what the daemon keeps, and what it is given as files, is where its defaults look for it', async t => {
	const mounts = new Map((await daemon()).volumeMounts?.map(({mountPath, name}) => [mountPath, name]));
	const {socketPath, podsDir} = loadConfig({}, host);
	for (const path of [socketPath, podsDir]) {
		t.true([...mounts].some(([mountPath, name]) => name === 'pods-dir' && path.startsWith(`${mountPath}/`)), path);
	}

	for (const {example = ''} of [settings.caCertFile, settings.certFile, settings.certKeyFile]) {
		t.true([...mounts].some(([mountPath, name]) => name === 'certificates' && example.startsWith(`${mountPath}/`)), example);
	}
});
