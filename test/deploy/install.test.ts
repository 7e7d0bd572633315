/** docs/install.md speaks of what there is. */
import {existsSync, readFileSync} from 'node:fs';
import {join} from 'node:path';
import test from 'ava';
import {extendedResource, ownerAnnotation} from '../../src/kubernetes/node-capacity.ts';
import {build, deployDirectory, parse, samples} from './manifests.ts';
import {namespace} from './relations.ts';
import {nameOf} from './types.ts';

const repository = join(deployDirectory, '..');
const text = readFileSync(join(repository, 'docs/install.md'), 'utf8');
const commands = [...text.matchAll(/^```sh\n(?<block>.*?)^```/gmsv)]
	.map(({groups}) => groups?.['block'] ?? '')
	.join('\n');

test('files that it names are there', t => {
	const paths = [...text.matchAll(/\bdeploy\/[\w.\-\/]*\w/gv)].map(([path]) => path);
	t.true(paths.length > 10);
	t.deepEqual(
		paths.filter(path => !existsSync(join(repository, path))),
		[],
	);
	t.deepEqual(
		[...text.matchAll(/\]\((?<path>[\w.\-\/]+\.md)\)/gv)]
			.map(({groups}) => groups?.['path'] ?? '')
			.filter(path => !existsSync(join(repository, 'docs', path))),
		[],
	);
});

test('links within it lead to headings', t => {
	const anchors = new Set(
		[...text.matchAll(/^#+ (?<heading>.+)$/gmv)].map(({groups}) =>
			(groups?.['heading'] ?? '')
				.toLowerCase()
				.replaceAll(/[^a-z0-9 \-]/gv, '')
				.replaceAll(' ', '-'),
		),
	);
	const links = [...text.matchAll(/\]\(#(?<anchor>[^\)]+)\)/gv)].map(({groups}) => groups?.['anchor'] ?? '');
	t.true(links.length > 10);
	t.deepEqual(
		links.filter(link => !anchors.has(link)),
		[],
	);
});

test('objects that its commands name are in the overlays, the samples or made by its commands', async t => {
	const known = new Set(
		[
			...(await build('overlays/openshift')),
			...(await build('overlays/openshift-image')),
			...(await build('overlays/monitoring-openshift')),
			...samples(),
		].map(each => nameOf(each).toLowerCase()),
	);
	const named = [
		...commands.matchAll(/\b(?<kind>daemonset|deployment|job|peerpodconfig|pod)[\/ ](?<name>[a-z0-9\-]+)/gv),
	]
		.map(({groups}) => `${groups?.['kind'] ?? ''} ${groups?.['name'] ?? ''}`)
		.filter(name => !name.startsWith('pod -'));
	t.true(named.length > 5);
	t.deepEqual(
		named.filter(name => !known.has(name)),
		[],
	);
	t.regex(commands, new RegExp(`^NS=${namespace}$`, 'mv'));
});

test('its patches are valid JSON, for existing fields of PeerPodConfig and of a node', t => {
	const patches = [
		...commands.matchAll(/(?<object>peerpodconfig|subscription|"\$node") .*?(?:--patch|-p) '(?<json>[^']+)'/gsv),
	].map(({groups}) => [groups?.['object'], JSON.parse(groups?.['json'] ?? '')] as const);
	const config = samples().find(({kind}) => kind === 'PeerPodConfig');
	t.deepEqual(
		patches.filter(([object]) => object !== 'subscription'),
		[
			['peerpodconfig', {spec: {limit: '20'}}],
			['"$node"', {status: {capacity: {[extendedResource]: null}}}],
		],
	);
	t.like(config, {spec: {limit: '10'}});
	t.true(commands.includes(`annotate "$node" ${ownerAnnotation}-\n`));
});

test('its manifests are YAML', t => {
	const blocks = [...text.matchAll(/^```yaml\n(?<block>.*?)^```/gmsv)]
		.map(({groups}) => groups?.['block'] ?? '')
		.filter(block => block.includes('apiVersion'));
	t.deepEqual(blocks.flatMap(parse).map(nameOf), [
		'Subscription sandboxed-containers-operator',
		'KataConfig example-kataconfig',
	]);
});
