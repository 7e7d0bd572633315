import {mkdir, symlink, writeFile} from 'node:fs/promises';
import test from 'ava';
import {identifyPodsDir, placeOf} from '../../src/journal/pods-dir.ts';
import {directoryOf} from '../support/directory.ts';

const onNode = `
22 1 8:1 / / rw,relatime - ext4 /dev/vda1 rw
25 22 0:23 / /run rw,nosuid - tmpfs tmpfs rw,mode=755
`;

/** hostPath volumes: the directory of the node's file system is the root of the mount. */
function inContainer(hostPath: string, mountPath: string): string {
	return `
600 500 0:90 / / rw,relatime - overlay overlay rw
601 600 0:23 ${hostPath} ${mountPath} rw,nosuid - tmpfs tmpfs rw,mode=755
602 600 0:23 /netns /run/netns rw,nosuid shared:12 master:1 - tmpfs tmpfs rw
`;
}

test('one directory is the same on the node and in a container, wherever it is mounted', t => {
	const place = placeOf('/run/peerpod/pods', onNode);
	t.is(place, 'tmpfs:/peerpod/pods');
	t.is(placeOf('/run/peerpod/pods', inContainer('/peerpod', '/run/peerpod')), place);
	t.is(placeOf('/somewhere/pods', inContainer('/peerpod', '/somewhere')), place);
});

test('two directories of the node have different identities, even at the same path in two containers', t => {
	t.not(
		placeOf('/run/peerpod/pods', inContainer('/peerpod', '/run/peerpod')),
		placeOf('/run/peerpod/pods', inContainer('/peerpod-2', '/run/peerpod')),
	);
});

test('if mounts cover each other, the last one counts; names with blanks are parsed', t => {
	t.is(
		placeOf(
			'/run/peerpod/pods',
			`${onNode}\n30 22 0:50 / /run/peerpod rw - tmpfs a rw\n31 22 0:51 /my\\040pods /run/peerpod rw - xfs b rw\n`,
		),
		'xfs:/my pods/pods',
	);
	t.is(placeOf('/runtime/pods', onNode), 'ext4:/runtime/pods');
	t.is(placeOf('/run/pods', 'not a table'), '/run/pods');
});

test('the fingerprint depends on node and directory alone, whatever path leads there', async t => {
	const directory = await directoryOf(t);
	await mkdir(`${directory}/pods`);
	await mkdir(`${directory}/other`);
	await symlink('pods', `${directory}/link`);
	const {fingerprint, path} = await identifyPodsDir(`${directory}/pods`, 'worker-0');
	t.regex(fingerprint, /^[\da-f]{16}$/v);
	t.is(path, `${directory}/pods`);
	t.is((await identifyPodsDir(`${directory}/link/../link`, 'worker-0')).fingerprint, fingerprint);
	t.not((await identifyPodsDir(`${directory}/other`, 'worker-0')).fingerprint, fingerprint);
	t.not((await identifyPodsDir(`${directory}/pods`, 'worker-1')).fingerprint, fingerprint);
	const {fingerprint: early} = await identifyPodsDir(`${directory}/made/later`, 'worker-0');
	await mkdir(`${directory}/made/later`, {recursive: true});
	t.is((await identifyPodsDir(`${directory}/made/later`, 'worker-0')).fingerprint, early);
	await writeFile(`${directory}/file`, '');
	await t.throwsAsync(identifyPodsDir(`${directory}/file/pods`, 'worker-0'), {
		message: /Could not find the mount of PODS_DIR/,
	});
});
