/** A node with a full PODS_DIR: a tmpfs of a few pages, in the mount namespace of the daemon. */
import test from 'ava';
import {pause, Scope} from '../../src/core/lifetime.ts';
import {newSandboxId, podAnnotations} from '../lab/shim.ts';
import type {TtrpcError} from '../../src/ttrpc/status.ts';
import {ChaosNode} from './node.ts';

const {signal} = new AbortController();

test('on a full disk, create and start fail with the reason and leave nothing, and stop still deletes', async t => {
	t.timeout(600_000);
	await using node = await ChaosNode.start({podsDirSize: '64k', patienceMs: 60_000});
	const empty = await node.inventory();
	const create = async (): Promise<string> => {
		const {name, path} = await node.pod('bridge');
		const id = newSandboxId();
		await node.shim.createVm({id, annotations: podAnnotations(name, 'chaos'), networkNamespacePath: path}, signal);
		return id;
	};

	const leftBesides = async (before: ReadonlySet<string>): Promise<readonly string[]> => {
		using scope = new Scope(signal).deadline(90_000, 'everything to be gone');
		for (;;) {
			const left = [...(await node.inventory()).difference(before)];
			if (left.length === 0 || scope.signal.aborted) {
				return left;
			}

			await pause(50, signal);
		}
	};

	const [running, created] = [await create(), await create()];
	await node.shim.startVm(running, signal);
	await node.fillPodsDir();
	const before = await node.inventory();
	for (const attempt of [() => create(), async () => node.shim.startVm(created, signal)]) {
		const {message} = await t.throwsAsync<TtrpcError>(attempt());
		t.regex(message, /Could not write the record of the sandbox to PODS_DIR: no space left on device.*Free space/);
		t.deepEqual(await leftBesides(before), []);
	}

	// The removed record of the failed start has freed space.
	await node.fillPodsDir();
	await node.shim.stopVm(running, signal);
	for (const told of ['could not record the removal', 'sandbox removed']) {
		await node.line(new RegExp(`${running}.*${told}`), AbortSignal.timeout(90_000));
	}

	await node.shim.stopVm(created, signal);
	await node.emptyPodsDir();
	t.deepEqual(await leftBesides(empty), []);
	await node.shim.stopVm(await create(), signal);
	t.deepEqual(await leftBesides(empty), []);
});
