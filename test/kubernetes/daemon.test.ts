// The daemon as the command runs it, in a cluster: what it says there is wired to what it was told, and stays when it
// stops.
import test from 'ava';
import type {CommandContext} from '../../src/cli/command.ts';
import {run} from '../../src/cli/run.ts';
import {textAt} from '../../src/core/json.ts';
import {extendedResource, ownerAnnotation} from '../../src/kubernetes/node-capacity.ts';
import {newPeerPod} from '../../src/kubernetes/peer-pod.ts';
import {peerPodConfigKind, peerPodKind, TestApiServer} from '../support/api-server.ts';
import {directoryOf} from '../support/directory.ts';
import {startTestLibvirtd} from '../support/libvirtd.ts';

const nowhere = {write: () => undefined};

test('a daemon advertises the capacity of its node, and leaves it to its successor', async t => {
	const directory = await directoryOf(t);
	await using api = await TestApiServer.start();
	await using libvirtd = await startTestLibvirtd();
	api.define(peerPodKind, peerPodConfigKind);
	api.put('nodes', {metadata: {name: 'worker-0'}});
	api.put('daemonsets', {metadata: {name: 'the-daemons', namespace: api.namespace}});
	// Of another node: to be seen, and left alone.
	const {metadata, ...rest} = newPeerPod(
		{sandboxId: 'x', instanceName: 'podvm-x-1', pod: {name: 'x', namespace: 'default'}},
		'nobody',
		{node: 'worker-1', cluster: 'east'},
	);
	api.put('peerpods', {
		...rest,
		metadata: {...metadata, name: 'podvm-x-1', namespace: 'default', ownerReferences: []},
	});
	const context: CommandContext = {
		env: {
			...api.environment,
			LIBVIRT_URI: `test+unix:///default?socket=${libvirtd.socketPath}`,
			CLUSTER_ID: 'east',
			NODE_NAME: 'worker-0',
			POD_UID: 'uid-1',
			PEERPODS_LIMIT_PER_NODE: '4',
			DAEMONSET_NAME: 'the-daemons',
			HOST_INTERFACE: 'lo',
			LOG_LEVEL: 'silent',
			REMOTE_HYPERVISOR_ENDPOINT: `${directory}/hypervisor.sock`,
			PODS_DIR: `${directory}/pods`,
		},
		flags: {},
		operands: [],
		host: {hostname: 'h'},
		version: '0',
		out: nowhere,
		err: nowhere,
		logTo: 2,
		onLogger: () => undefined,
		processContext: {
			home: '/nonexistent',
			user: 'root',
			sshAgentSocket: undefined,
			serviceAccountDirectory: api.accountDirectory,
		},
	};
	const capacity = (): string | undefined =>
		textAt(api.find('nodes', 'worker-0'), 'status', 'capacity', extendedResource);
	const ending = new AbortController();
	const running = run(context, ending.signal);
	await api.until(() => capacity() === '4');
	t.is(textAt(api.find('nodes', 'worker-0'), 'metadata', 'annotations', ownerAnnotation), 'uid-1');
	api.put('peerpodconfigs', {
		metadata: {name: 'peerpodconfig-openshift', namespace: api.namespace},
		spec: {limit: '6'},
	});
	await api.until(() => capacity() === '6');
	await api.until(() => api.calls.some(({plural}) => plural === 'daemonsets'));
	ending.abort(new Error('told to stop'));
	t.is(await running, 0);
	t.is(capacity(), '6');
	t.is(api.list('peerpods').length, 1);
	await api.until(() => api.watches === 0);
});
