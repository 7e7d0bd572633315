/** Who can send into a pod's tunnel: its VM, and nobody else. With real packets. */
import test from 'ava';
import type {PodNetwork} from '../../src/sandbox/ports.ts';
import {intrude} from './intruder.ts';
import {podAddress, World} from './world.ts';

const signal = (): AbortSignal => AbortSignal.timeout(100_000);
const client = {netns: 'client', address: podAddress('bridge', 9)};

test('a pod, the node and another VM that send into a tunnel are refused and counted', async t => {
	await using world = await World.create();
	await using networks = world.networks();
	await world.addPod('bridge', 9, 'client');
	await world.addPod('bridge', 7, 'attacker');
	const [one, two] = await Promise.all([5, 6].map(async index => {
		const network = await networks.reserve(`sandbox-${index}`, await world.addPod('bridge', index), signal());
		await networks.attach(network, await world.addVm(index), signal());
		await world.configureVm(index, network);
		return network;
	})) as [PodNetwork, PodNetwork];
	for (const from of ['attacker', 'vm-6', undefined]) {
		t.log(await intrude(world, {victim: one, target: client, ...(from !== undefined && {from})}), 0, from);
	}

	t.is(await intrude(world, {victim: one, target: client, from: 'vm-5'}), 20);
	t.truthy(two);
});
