/** The end of a daemon whose KVM host hangs: it accepts connections and calls, but answers none. */
import test from 'ava';
import {pause} from '../../src/core/lifetime.ts';
import {newSandboxId, podAnnotations} from '../lab/shim.ts';
import {ChaosNode, type PodNetns} from './node.ts';

const {signal} = new AbortController();

test('a daemon with a stuck host stops in time during a start and a stop, and the next leaves nothing', async t => {
	t.timeout(600_000);
	await using node = await ChaosNode.start({patienceMs: 60_000});
	const before = await node.inventory();
	const create = async ({name, path}: PodNetns): Promise<string> => {
		const id = newSandboxId();
		await node.shim.createVm({id, annotations: podAnnotations(name, 'chaos'), networkNamespacePath: path}, signal);
		return id;
	};

	const stopping = await create(await node.pod('bridge'));
	const starting = await create(await node.pod('bridge'));
	await node.shim.startVm(stopping, signal);
	const isStuck = Promise.withResolvers<undefined>();
	let stuck = false;
	node.onCall = procedure => {
		stuck ||= procedure === 'domainDefineXmlFlags';
		if (!stuck) {
			return undefined;
		}

		isStuck.resolve(undefined);
		// Performed, but never answered.
		return {when: 'during', action: 'freeze'};
	};
	const start = t.throwsAsync(node.shim.startVm(starting, signal));
	await isStuck.promise;
	const stop = t.throwsAsync(node.shim.stopVm(stopping, signal));
	while ([...(await node.inventory())].some(name => name.includes(stopping) && name.endsWith('agent.ttrpc'))) {
		await pause(20, signal);
	}

	const {ended} = node;
	const toldAt = performance.now();
	node.restart('SIGTERM');
	await ended;
	const tookMs = Math.round(performance.now() - toldAt);
	t.log(`${tookMs} ms from SIGTERM to the end`);
	// The grace period of Kubernetes. The time limits of the daemon add up to about 16 s.
	t.true(tookMs < 30_000, `${tookMs} ms`);
	await Promise.all([start, stop]);
	await node.settled();
	node.onCall = undefined;
	await Promise.all([starting, stopping].map(async id => node.shim.stopVm(id, signal)));
	t.deepEqual(await node.leftOver(before), []);
});
